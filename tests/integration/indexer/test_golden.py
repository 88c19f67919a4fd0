"""What the official indexer makes of small stories (its own tests, and runs of it)."""

from typing import Any

import pytest

from tests.integration.indexer.golden import Note, all_rows, expect, note_row
from tests.integration.indexer.kit import (
    Event,
    Network,
    Tables,
    cid_of,
    did_of,
    identity,
    mention,
    quoting,
    time_of,
)

LIST = f"at://{did_of('alice')}/app.bsky.graph.list/1"


def images(*alts: str) -> dict[str, Any]:
    blob = {"$type": "blob", "ref": {"$link": cid_of("blob")}, "mimeType": "image/png", "size": 1}
    return {
        "$type": "app.bsky.embed.images",
        "images": [{"image": blob, "alt": alt} for alt in alts],
    }


def test_a_post_is_created_updated_and_deleted(tables: Tables, net: Network) -> None:
    post = net.post("alice", facets=mention("bob"))
    events: list[Event] = [post]
    tables.apply(post)
    expect(tables, events, told=[(post, "bob", "mention", None)], people={"alice": (0, 0, 1)})
    edited = net.update(post, {"text": "new", "facets": mention("carol")})
    events.append(edited)
    tables.apply(edited)
    expect(tables, events, told=[(edited, "carol", "mention", None)], people={"alice": (0, 0, 1)})
    events.append(net.delete(post))
    tables.apply(events[-1])
    expect(tables, events)
    assert set(all_rows(tables)) == {"actor", "actor_sync"}


def test_a_profile_is_created_updated_and_deleted(tables: Tables, net: Network) -> None:
    profile = net.put("dan", "app.bsky.actor.profile", {"displayName": "dan"}, "self")
    events: list[Event] = [profile, net.update(profile, {"displayName": "danny"})]
    tables.apply(events[0])
    expect(tables, events[:1])
    tables.apply(events[1])
    expect(tables, events)
    assert tables.rows("profile", '"displayName"') == [("danny",)]
    events.append(net.delete(profile))
    tables.apply(events[-1])
    expect(tables, events)
    assert set(all_rows(tables)) == {"actor", "actor_sync"}


def test_reactions_before_their_post_count(tables: Tables, net: Network) -> None:
    post = net.post("alice")
    reply, like, repost = net.reply("bob", post), net.like("bob", post), net.repost("bob", post)
    events = [reply, like, repost, post]
    tables.apply_each(events)
    expect(
        tables, events, counts=[(post, (1, 1, 1, 0))],
        people={"alice": (0, 0, 1), "bob": (0, 0, 1)},
        told=[(like, "alice", "like", post), (repost, "alice", "repost", post),
              (reply, "alice", "reply", post)],
    )  # fmt: skip


@pytest.mark.parametrize("whom", ["did:example:unknown", did_of("dan")])
def test_followers_of_unknown_accounts_are_counted(tables: Tables, net: Network, whom: str) -> None:
    """Also of one that becomes known later."""
    follow = net.put("bob", "app.bsky.graph.follow", {"subject": whom})
    events: list[Event] = [follow]
    tables.apply(follow)
    note = {**note_row((follow, "dan", "follow", None)), "did": whom}
    told = {"notification": [note]}
    expect(tables, events, people={"bob": (0, 1, 0), whom: (1, 0, 0)}, besides=told)
    if whom == did_of("dan"):
        events.append(identity("dan", 2))
        tables.apply(events[-1])
        expect(tables, events, people={"bob": (0, 1, 0), whom: (1, 0, 0)}, besides=told)


def test_the_basic_seed(tables: Tables, net: Network) -> None:
    profiles = [net.put(who, "app.bsky.actor.profile", {"displayName": who}, "self")
                for who in "ab"]  # fmt: skip
    chat = net.put("d", "chat.bsky.actor.declaration", {"allowIncoming": "all"}, "self")
    pairs = ("a>b", "a>c", "a>d", "c>a", "b>a", "b>c", "d>b")
    follows = [net.follow(*pair.split(">")) for pair in pairs]
    a0, b0 = net.post("a"), net.post("b", langs=["en-US", "i-klingon"])
    media = {"$type": "app.bsky.embed.recordWithMedia", "record": quoting(b0),
             "media": images("one", "two")}  # fmt: skip
    c0, d0 = net.post("c", embed=media), net.post("d")
    d1 = net.post("d", facets=mention("a"), embed=quoting(c0))
    a1, b1 = net.post("a"), net.post("b")
    a2 = net.post("a", embed=quoting(d1))
    liking = (("b", a1), ("b", a2), ("c", a1), ("c", a2), ("d", a1), ("a", c0), ("b", c0))
    likes = [net.like(who, post) for who, post in liking]
    rb = net.reply("b", a1, embed=images("three"))
    rc = net.reply("c", a1)
    ra = net.reply("a", rb, a1)
    reposts = [net.repost("c", d1), net.repost("d", a1), net.repost("d", ra)]
    events: list[Event] = [
        *profiles, chat, *follows, a0, b0, c0, d0, d1, a1, b1, a2, *likes, rb, rc, ra, *reposts,
    ]  # fmt: skip
    tables.apply(*events)
    told: list[Note] = [
        *((put, pair[2], "follow", None) for put, pair in zip(follows, pairs, strict=True)),
        *((put, post.who, "like", post) for put, (_, post) in zip(likes, liking, strict=True)),
        (c0, "b", "quote", b0), (d1, "a", "mention", None), (d1, "c", "quote", c0),
        (a2, "d", "quote", d1), (rb, "a", "reply", a1), (rc, "a", "reply", a1),
        (ra, "b", "reply", rb), (reposts[0], "d", "repost", d1), (reposts[1], "a", "repost", a1),
        (reposts[2], "a", "repost", ra),
    ]  # fmt: skip
    people = {"a": (2, 3, 4), "b": (2, 2, 3), "c": (2, 1, 2), "d": (1, 1, 2)}
    counts = [
        (a1, (3, 2, 1, 0)), (a2, (2, 0, 0, 0)), (ra, (0, 0, 1, 0)), (b0, (0, 0, 0, 1)),
        (rb, (0, 1, 0, 0)), (c0, (2, 0, 0, 1)), (d1, (0, 0, 1, 1)),
    ]  # fmt: skip
    expect(tables, events, told=told, people=people, counts=counts)
    assert {who: len(tables.notified(who)) for who in "abcd"} == {"a": 12, "b": 4, "c": 5, "d": 3}
    assert {name: len(rows) for name, rows in all_rows(tables).items() if name != "actor"} == {
        "record": 31, "post": 11, "feed_item": 14, "like": 7, "follow": 7, "repost": 3,
        "post_embed_image": 3, "post_embed_record": 3, "quote": 3, "op_thread_reply": 1,
        "notification": 24, "post_agg": 7, "profile_agg": 4, "profile": 2, "actor_sync": 4,
    }  # fmt: skip
    deeper = net.reply("c", ra, a1)
    tables.apply(deeper)
    told += [(deeper, "a", "reply", ra), (deeper, "b", "reply", rb)]
    counts[2] = (ra, (0, 1, 1, 0))
    expect(tables, [*events, deeper], told=told, counts=counts, people=people | {"c": (2, 1, 3)})
    assert (len(tables.notified("a")), len(tables.notified("b"))) == (13, 5)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_chain_notifies_four_levels_up(tables: Tables, net: Network, backwards: bool) -> None:
    """Officially, backwards nobody is told, and replies stay invalid."""
    chain = [net.post("p0")]
    for number in range(1, 7):
        chain.append(net.reply(f"p{number}", chain[-1], chain[0]))
    tables.apply_each(chain[::-1] if backwards else chain)
    told: list[Note] = [
        (chain[low], f"p{high}", "reply", chain[high])
        for low in range(7) for high in range(max(0, low - 4), low)
    ]  # fmt: skip
    assert len(told) == 18
    expect(
        tables, chain, told=told, counts=[(put, (0, 1, 0, 0)) for put in chain[:6]],
        people={f"p{number}": (0, 0, 1) for number in range(7)},
    )  # fmt: skip


def test_everybody_is_told_once_for_a_post(tables: Tables, net: Network) -> None:
    post = net.post("alice")
    reply = net.reply(
        "bob", post, facets=mention("bob", "alice", "carol", "carol"), embed=quoting(post)
    )
    tables.apply(post, reply)
    expect(
        tables, [post, reply], counts=[(post, (0, 1, 0, 1))],
        people={"alice": (0, 0, 1), "bob": (0, 0, 1)},
        told=[(reply, "alice", "mention", None), (reply, "carol", "mention", None)],
    )  # fmt: skip


def test_quotes_count_and_notify_others(tables: Tables, net: Network) -> None:
    """Officially the edit empties the quotes of the post."""
    post = net.post("alice")
    bobs = net.quote("bob", post)
    media = {"$type": "app.bsky.embed.recordWithMedia", "record": quoting(post),
             "media": images("x")}  # fmt: skip
    carols, own = net.post("carol", embed=media), net.quote("alice", post)
    events: list[Event] = [post, bobs, carols, own]
    tables.apply(*events)
    people = {"alice": (0, 0, 2), "bob": (0, 0, 1), "carol": (0, 0, 1)}
    told: list[Note] = [(bobs, "alice", "quote", post), (carols, "alice", "quote", post)]
    expect(tables, events, told=told, people=people, counts=[(post, (0, 0, 0, 3))])
    events.append(net.delete(bobs))
    tables.apply(events[-1])
    del people["bob"]
    expect(tables, events, told=told[1:], people=people, counts=[(post, (0, 0, 0, 2))])
    events.append(net.update(post, {"text": "edited"}))
    tables.apply(events[-1])
    expect(tables, events, told=told[1:], people=people, counts=[(post, (0, 0, 0, 2))])
    events.append(net.delete(post))
    tables.apply(events[-1])
    assert tables.rows("quote") == []
    assert tables.counts(post) == (0, 0, 0, 0)


def test_profiles_and_labelers_have_one_rkey(tables: Tables, net: Network) -> None:
    policies: dict[str, Any] = {"policies": {"labelValues": []}}
    events = [
        net.put("alice", "app.bsky.actor.profile", {"displayName": "x"}, "other"),
        net.put("alice", "app.bsky.labeler.service", policies, "other"),
        net.put("alice", "app.bsky.labeler.service", policies, "self"),
    ]
    tables.apply(*events)
    expect(tables, events)
    assert {name: len(rows) for name, rows in all_rows(tables).items()} == {
        "actor": 1, "actor_sync": 1, "labeler": 1, "record": 3,
    }  # fmt: skip


@pytest.mark.parametrize("together", [False, True])
def test_joining_through_a_starter_pack_is_told_once(
    tables: Tables, net: Network, together: bool
) -> None:
    pack = net.put("alice", "app.bsky.graph.starterpack", {"name": "p", "list": LIST})
    joined = {"joinedViaStarterPack": pack.reference}
    profiles = [net.put(who, "app.bsky.actor.profile", {"displayName": who, **joined}, "self")
                for who in ("bob", "carol", "dan")]  # fmt: skip
    edited = net.update(profiles[0], {**joined, "displayName": "b"})
    events = [pack, *profiles, edited]
    for batch in [events] if together else [[event] for event in events]:
        tables.apply(*batch)
    expect(tables, events, told=[(put, "alice", "starterpack-joined", pack) for put in profiles])


@pytest.mark.parametrize(
    ("created", "stored"),
    [
        ("2023-01-02T03:04:06.123456Z", "2023-01-02T03:04:06.123Z"),
        ("2023-01-02T21:21:06+09:00", "2023-01-02T12:21:06.000Z"),
        ("2999-01-01T00:00:00Z", "2999-01-01T00:00:00.000Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"),
    ],
)
def test_times_are_stored_in_one_form(
    tables: Tables, net: Network, created: str, stored: str
) -> None:
    post = net.post("alice", createdAt=created)
    tables.apply(post)
    seen = time_of(post.number)
    changed = {post.uri: {"createdAt": stored, "sortAt": min(stored, seen)}}
    expect(tables, [post], people={"alice": (0, 0, 1)}, changed=changed)


def test_characters_that_postgresql_cannot_store_are_left_out(tables: Tables, net: Network) -> None:
    tables.apply(
        net.post("alice", "nul\0 here", tags=["e\0n"], embed=images("al\0t")),
        net.put("alice", "app.bsky.graph.list", {"name": "a\0b", "purpose": "p\0"}),
    )
    assert tables.rows("post", "text, tags") == [("nul here", ["en"])]
    assert tables.rows("post_embed_image", "alt") == [("alt",)]
    assert tables.rows("list", "name, purpose") == [("ab", "p")]


def test_history_notifies_nobody(tables: Tables) -> None:
    net = Network(history=True)
    post = net.post("alice", facets=mention("dan"))
    tables.apply(post, net.like("bob", post), net.reply("carol", post), net.follow("bob", "alice"))
    assert tables.notified() == []
    assert tables.counts(post) == (1, 1, 0, 0)


def test_a_muted_thread_is_filtered_before_its_root_is_there(tables: Tables, net: Network) -> None:
    """Officially it is not."""
    root = net.post("alice")
    mute = {"rootUri": root.uri, "mutedByDid": did_of("alice"), "createdAt": time_of(1)}
    tables.database.execute(
        'INSERT INTO thread_mute ("rootUri", "mutedByDid", "createdAt") VALUES (%s, %s, %s)',
        tuple(mute.values()),
    )
    like, repost, quote = net.like("bob", root), net.repost("bob", root), net.quote("bob", root)
    reply = net.reply("bob", root, facets=mention("alice", "carol"))
    other = net.reply("dan", root)
    events = [like, repost, quote, reply, other, root]
    tables.apply_each(events)
    expect(
        tables, events, besides={"thread_mute": [mute]}, counts=[(root, (1, 2, 1, 1))],
        people={"alice": (0, 0, 1), "bob": (0, 0, 2), "dan": (0, 0, 1)},
        told=[(reply, "alice", "mention", None), (reply, "carol", "mention", None)],
    )  # fmt: skip


def test_muted_threads_do_not_notify(tables: Tables, net: Network) -> None:
    """Officially the muted records are lost; after the mute everything is told again."""
    root = net.post("alice")
    own = net.reply("alice", root)
    tables.apply(root, own)
    mute = {"rootUri": root.uri, "mutedByDid": did_of("alice"), "createdAt": time_of(1)}
    tables.database.execute(
        'INSERT INTO thread_mute ("rootUri", "mutedByDid", "createdAt") VALUES (%s, %s, %s)',
        tuple(mute.values()),
    )
    muted = [net.reply("bob", root), net.reply("bob", own, root), net.quote("bob", root),
             net.quote("bob", own), net.like("bob", root), net.like("bob", own),
             net.repost("bob", root), net.repost("bob", own)]  # fmt: skip
    tables.apply(*muted)
    events: list[Event] = [root, own, *muted]
    people = {"alice": (0, 0, 2), "bob": (0, 0, 4)}
    expect(tables, events, besides={"thread_mute": [mute]}, people=people,
           counts=[(root, (1, 2, 1, 1)), (own, (1, 1, 1, 1))])  # fmt: skip
    tables.database.execute("DELETE FROM thread_mute")
    gone = [net.delete(put) for put in muted[4:]]
    tables.apply(*gone)
    replies = [net.reply("bob", root), net.reply("bob", own, root)]
    like, repost = net.like("bob", root), net.repost("bob", own)
    tables.apply(*replies, like, repost)
    expect(
        tables, [*events, *gone, *replies, like, repost], people=people | {"bob": (0, 0, 6)},
        told=[(replies[0], "alice", "reply", root), (replies[1], "alice", "reply", own),
              (like, "alice", "like", root), (repost, "alice", "repost", own)],
        counts=[(root, (1, 3, 0, 1)), (own, (0, 2, 1, 1))],
    )  # fmt: skip
