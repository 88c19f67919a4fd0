"""Golden cases of likes, reposts and follows: duplicates, feed items, whom they tell."""

from collections.abc import Sequence

import pytest

from tests.integration.indexer.golden import Note, expect
from tests.integration.indexer.kit import (
    Event,
    Network,
    Put,
    Tables,
    did_of,
    time_of,
)


def test_nobody_is_notified_of_their_own_reactions(tables: Tables, net: Network) -> None:
    post = net.post("bob")
    own = [net.like("bob", post), net.repost("bob", post)]
    like, repost = net.like("alice", post), net.repost("alice", post)
    events = [post, *own, like, repost]
    tables.apply(*events)
    expect(
        tables, events, counts=[(post, (2, 0, 2, 0))], people={"bob": (0, 0, 1)},
        told=[(like, "bob", "like", post), (repost, "bob", "repost", post)],
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["like", "repost", "follow"])
@pytest.mark.parametrize("ordered", [True, False])
def test_of_identical_records_one_stands(
    tables: Tables, net: Network, kind: str, ordered: bool
) -> None:
    post = net.post("alice")

    def make() -> Put:
        if kind == "follow":
            return net.follow("bob", "alice")
        return net.like("bob", post) if kind == "like" else net.repost("bob", post)

    puts = [make() for _ in range(5)]
    events: list[Event] = [post, *puts]
    tables.apply_each(events if ordered else [post, *puts[1:], puts[0]])

    def check(stands: Put, waiting: Sequence[Put]) -> None:
        likes, reposts, follows = kind == "like", kind == "repost", kind == "follow"
        expect(
            tables, events, waiting=[(put, stands) for put in waiting],
            counts=[] if follows else [(post, (int(likes), 0, int(reposts), 0))],
            people={"alice": (int(follows), 0, 1)} | ({"bob": (0, 1, 0)} if follows else {}),
            told=[(stands, "alice", kind, None if follows else post)],
            changed={} if ordered else {did_of("bob"): {"indexedAt": time_of(puts[1].number)}},
        )  # fmt: skip

    check(puts[0], puts[1:])
    for number in range(4):
        events.append(net.delete(puts[number]))
        tables.apply(events[-1])
        check(puts[number + 1], puts[number + 2 :])
    events.append(net.delete(puts[4]))
    tables.apply(events[-1])
    expect(
        tables, events, people={"alice": (0, 0, 1)},
        changed={} if ordered else {did_of("bob"): {"indexedAt": time_of(puts[1].number)}},
    )  # fmt: skip


def test_a_changed_follow_leaves_its_duplicates(tables: Tables, net: Network) -> None:
    """Officially the other one goes on waiting, an update onto a taken subject is lost, and an
    update leaves the notification of the old subject and makes none.
    """
    one, two = net.follow("bob", "alice"), net.follow("bob", "alice")
    events: list[Event] = [one, two]
    tables.apply_each(events)
    told: list[Note] = [(one, "alice", "follow", None)]
    expect(tables, events, waiting=[(two, one)], told=told,
           people={"alice": (1, 0, 0), "bob": (0, 1, 0)})  # fmt: skip
    moved = net.update(one, {"subject": did_of("carol")})
    events.append(moved)
    tables.apply(moved)
    both = {"alice": (1, 0, 0), "carol": (1, 0, 0), "bob": (0, 2, 0)}
    told = [(moved, "carol", "follow", None), (two, "alice", "follow", None)]
    expect(tables, events, people=both, told=told)
    away = net.update(two, {"subject": did_of("dan")})
    events.append(away)
    tables.apply(away)
    both = {"dan": (1, 0, 0), "carol": (1, 0, 0), "bob": (0, 2, 0)}
    told = [(moved, "carol", "follow", None), (away, "dan", "follow", None)]
    expect(tables, events, people=both, told=told)
    onto = net.update(two, {"subject": did_of("carol")})
    events.append(onto)
    tables.apply(onto)
    expect(tables, events, waiting=[(onto, moved)], told=told[:1],
           people={"carol": (1, 0, 0), "bob": (0, 1, 0)})  # fmt: skip


def test_only_the_standing_repost_is_a_feed_item(tables: Tables, net: Network) -> None:
    post = net.post("alice")
    first, second = net.repost("bob", post), net.repost("bob", post)
    tables.apply_each([post, first, second])
    items = tables.rows("feed_item", "uri", "type = 'repost'")
    assert items == [(first.uri,)]
    tables.apply(net.delete(first))
    assert tables.rows("feed_item", "uri", "type = 'repost'") == [(second.uri,)]
    assert tables.counts(post) == (0, 0, 1, 0)


@pytest.mark.parametrize("kind", ["like", "repost"])
def test_reactions_via_a_repost_tell_the_reposter_too(
    tables: Tables, net: Network, kind: str
) -> None:
    post = net.post("alice")
    repost = net.repost("bob", post)
    make = net.like if kind == "like" else net.repost
    carols, own = make("carol", post, via=repost), make("alice", post, via=repost)
    events = [post, repost, carols, own]
    told: list[Note] = [
        (repost, "alice", "repost", post), (carols, "alice", kind, post),
        (carols, "bob", f"{kind}-via-repost", repost),
    ]  # fmt: skip
    counts = (0, 0, 3, 0)
    if kind == "like":
        bobs = net.like("bob", post, via=repost)
        events.append(bobs)
        told.append((bobs, "alice", "like", post))
        counts = (3, 0, 1, 0)
    tables.apply(*events)
    expect(tables, events, told=told, counts=[(post, counts)], people={"alice": (0, 0, 1)})


def test_a_feed_generator_can_be_liked(tables: Tables, net: Network) -> None:
    feed = net.put(
        "alice", "app.bsky.feed.generator", {"did": "did:web:feeds.test", "displayName": "cats"}
    )
    like = net.like("bob", feed)
    tables.apply(feed, like)
    expect(tables, [feed, like], told=[(like, "alice", "like", feed)],
           counts=[(feed, (1, 0, 0, 0))])  # fmt: skip


@pytest.mark.parametrize("early", [True, False])
def test_reposts_of_a_deleted_feed_stay_in_feeds(tables: Tables, net: Network, early: bool) -> None:
    """Only the deletion of a post takes its reposts out of feeds, whatever comes first."""
    feed = net.put(
        "alice", "app.bsky.feed.generator", {"did": "did:web:feeds.test", "displayName": "cats"}
    )
    repost = net.repost("bob", feed)
    gone = net.delete(feed)
    tables.apply_each([feed, repost, gone] if early else [feed, gone, repost])
    assert tables.rows("feed_item", "uri") == [(repost.uri,)]


@pytest.mark.parametrize("together", [True, False])
def test_a_post_that_is_made_again_begins_anew(
    tables: Tables, net: Network, together: bool
) -> None:
    """As officially, in whatever batches."""
    post = net.post("ann")
    repost, quote = net.repost("bob", post), net.quote("bob", post)
    tables.apply(post, repost, quote)
    deletion = net.delete(post)
    again = net.put("ann", post.collection, {"text": "again"}, post.rkey)
    events = (deletion, again)
    if together:
        tables.apply(*events)
    else:
        tables.apply_each(events)
    assert tables.rows("feed_item", "uri") == [(again.uri,), (quote.uri,)]
    assert tables.rows("quote") == []
    assert tables.rows("repost", "uri") == [(repost.uri,)]
    assert tables.counts(again) == (0, 0, 1, 0)
