"""What the official indexer makes of small stories (its own tests, and runs of it)."""

from typing import Any

import pytest

from tests.integration.indexer.kit import (
    Network,
    Put,
    Tables,
    cid_of,
    did_of,
    mention,
    notes_of,
    quoting,
    recounted,
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
    tables.apply(post)
    assert notes_of(tables, post) == [(did_of("bob"), "mention", None, post.cid)]
    edited = net.update(post, {"text": "new", "facets": mention("carol")})
    tables.apply(edited)
    assert tables.rows("post", "text") == [("new",)]
    assert notes_of(tables, post) == [(did_of("carol"), "mention", None, edited.cid)]
    tables.apply(net.delete(post))
    for table in ("post", "record", "feed_item", "notification"):
        assert tables.rows(table) == []
    assert tables.profile_counts("alice") == (0, 0, 0)


def test_a_profile_is_created_updated_and_deleted(tables: Tables, net: Network) -> None:
    profile = net.put("dan", "app.bsky.actor.profile", {"displayName": "dan"}, "self")
    tables.apply(profile)
    tables.apply(net.update(profile, {"displayName": "danny"}))
    assert tables.rows("profile", '"displayName"') == [("danny",)]
    tables.apply(net.delete(profile))
    assert tables.rows("profile") == []
    assert tables.rows("actor", "did") == [(did_of("dan"),)]


def test_reactions_before_their_post_count(tables: Tables, net: Network) -> None:
    post = net.post("alice")
    tables.apply_each(
        [net.reply("bob", post), net.like("bob", post), net.repost("bob", post), post]
    )
    assert tables.counts(post) == (1, 1, 1, 0)


def test_nobody_is_notified_of_their_own_reactions(tables: Tables, net: Network) -> None:
    post = net.post("bob")
    reactions = [net.like("bob", post), net.repost("bob", post)]
    reactions += [net.like("alice", post), net.repost("alice", post)]
    tables.apply(post, *reactions)
    assert sorted(reason for reason, _ in tables.notified("bob")) == ["like", "repost"]
    assert {row[0] for row in tables.rows("notification", "author")} == {did_of("alice")}


def test_followers_of_unknown_accounts_are_counted(tables: Tables, net: Network) -> None:
    tables.apply(net.put("bob", "app.bsky.graph.follow", {"subject": "did:example:unknown"}))
    rows = tables.rows("profile_agg", 'did, "followersCount"', '"followersCount" > 0')
    assert rows == [("did:example:unknown", 1)]


@pytest.mark.parametrize("kind", ["like", "repost", "follow"])
def test_of_identical_records_one_stands(tables: Tables, net: Network, kind: str) -> None:
    post = net.post("alice")

    def make() -> Put:
        if kind == "follow":
            return net.follow("bob", "alice")
        return net.like("bob", post) if kind == "like" else net.repost("bob", post)

    first, second, third = make(), make(), make()
    tables.apply_each([post, second, third, first])
    assert tables.rows(kind, "uri, cid") == [(first.uri, first.cid)]
    waiting = tables.rows("duplicate_record", 'uri, "duplicateOf"')
    assert waiting == [(second.uri, first.uri), (third.uri, first.uri)]
    assert tables.notified("alice") == [(kind, first.uri)]
    tables.apply(net.delete(first))
    assert tables.rows(kind, "uri, cid") == [(second.uri, second.cid)]
    assert tables.rows("duplicate_record", 'uri, "duplicateOf"') == [(third.uri, second.uri)]
    assert tables.notified("alice") == [(kind, second.uri)]
    tables.apply(net.delete(third), net.delete(second))
    assert tables.rows(kind) == tables.rows("duplicate_record") == tables.notified() == []
    recounted(tables)


def test_a_changed_follow_leaves_its_duplicates(tables: Tables, net: Network) -> None:
    one, two = net.follow("bob", "alice"), net.follow("bob", "alice")
    tables.apply_each([one, two])
    tables.apply(net.update(one, {"subject": did_of("carol")}))
    columns = 'uri, "subjectDid"'
    assert tables.rows("follow", columns) == [
        (one.uri, did_of("carol")), (two.uri, did_of("alice")),
    ]  # fmt: skip
    tables.apply(net.update(two, {"subject": did_of("carol")}))
    assert tables.rows("follow", columns) == [(one.uri, did_of("carol"))]
    assert tables.rows("duplicate_record", 'uri, "duplicateOf"') == [(two.uri, one.uri)]
    assert tables.profile_counts("alice") == (0, 0, 0)
    assert tables.profile_counts("carol") == (1, 0, 0)


def test_the_basic_seed(tables: Tables, net: Network) -> None:
    follows = [net.follow(*pair.split(">")) for pair in (
        "a>b", "a>c", "a>d", "c>a", "b>a", "b>c", "d>b",
    )]  # fmt: skip
    a0, b0 = net.post("a"), net.post("b", langs=["en-US", "i-klingon"])
    media = {"$type": "app.bsky.embed.recordWithMedia", "record": quoting(b0),
             "media": images("one", "two")}  # fmt: skip
    c0, d0 = net.post("c", embed=media), net.post("d")
    d1 = net.post("d", facets=mention("a"), embed=quoting(c0))
    a1, b1 = net.post("a"), net.post("b")
    a2 = net.post("a", embed=quoting(d1))
    likes = [net.like(who, post) for who, post in (
        ("b", a1), ("b", a2), ("c", a1), ("c", a2), ("d", a1), ("a", c0), ("b", c0),
    )]  # fmt: skip
    rb = net.reply("b", a1, embed=images("three"))
    rc = net.reply("c", a1)
    ra = net.reply("a", rb, a1)
    reposts = [net.repost("c", d1), net.repost("d", a1), net.repost("d", ra)]
    tables.apply(*follows, a0, b0, c0, d0, d1, a1, b1, a2, *likes, rb, rc, ra, *reposts)
    assert [tables.profile_counts(who) for who in "abcd"] == [
        (2, 3, 4), (2, 2, 3), (2, 1, 2), (1, 1, 2),
    ]  # fmt: skip
    assert [tables.counts(post) for post in (a1, a2, ra, b0, rb, c0, d1)] == [
        (3, 2, 1, 0), (2, 0, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 1, 0, 0), (2, 0, 0, 1),
        (0, 0, 1, 1),
    ]  # fmt: skip
    assert len(tables.rows("post_agg")) == 7
    assert {who: len(tables.notified(who)) for who in "abcd"} == {"a": 12, "b": 4, "c": 5, "d": 3}
    sizes = {table: len(tables.rows(table)) for table in (
        "post", "feed_item", "like", "follow", "repost", "post_embed_image", "post_embed_record",
        "quote", "op_thread_reply",
    )}  # fmt: skip
    assert sizes == {
        "post": 11, "feed_item": 14, "like": 7, "follow": 7, "repost": 3, "post_embed_image": 3,
        "post_embed_record": 3, "quote": 3, "op_thread_reply": 1,
    }  # fmt: skip
    assert tables.rows("post", "langs", f"uri = '{b0.uri}'") == [(["en-US", "i-klingon"],)]
    assert tables.rows("post_embed_image", "position, alt", f"\"postUri\" = '{c0.uri}'") == [
        ("0", "one"), ("1", "two"),
    ]  # fmt: skip
    tables.apply(net.reply("carol", ra, a1))
    assert len(tables.notified("a")) == 13


def test_a_chain_notifies_four_levels_up(tables: Tables, net: Network) -> None:
    chain = [net.post("p0")]
    for number in range(1, 7):
        chain.append(net.reply(f"p{number}", chain[-1], chain[0]))
    tables.apply_each(chain)
    told = {row[0] for row in notes_of(tables, chain[6])}
    assert told == {did_of(f"p{number}") for number in (2, 3, 4, 5)}
    assert len(tables.notified()) == 18
    assert {tables.counts(post) for post in chain[:6]} == {(0, 1, 0, 0)}


def test_everybody_is_told_once_for_a_post(tables: Tables, net: Network) -> None:
    post = net.post("alice")
    reply = net.reply(
        "bob", post, facets=mention("bob", "alice", "carol", "carol"), embed=quoting(post)
    )
    tables.apply(post, reply)
    assert [row[:2] for row in notes_of(tables, reply)] == [
        (did_of("alice"), "mention"), (did_of("carol"), "mention"),
    ]  # fmt: skip


def test_quotes_count_and_notify_others(tables: Tables, net: Network) -> None:
    post = net.post("alice")
    bobs = net.quote("bob", post)
    media = {"$type": "app.bsky.embed.recordWithMedia", "record": quoting(post),
             "media": images("x")}  # fmt: skip
    tables.apply(post, bobs, net.post("carol", embed=media), net.quote("alice", post))
    assert tables.counts(post) == (0, 0, 0, 3)
    assert [reason for reason, _ in tables.notified("alice")] == ["quote", "quote"]
    tables.apply(net.delete(bobs))
    assert tables.counts(post) == (0, 0, 0, 2)
    assert len(tables.notified("alice")) == 1
    tables.apply(net.update(post, {"text": "edited"}))
    assert tables.counts(post) == (0, 0, 0, 2)
    tables.apply(net.delete(post))
    assert tables.rows("quote") == []


def test_only_the_standing_repost_is_a_feed_item(tables: Tables, net: Network) -> None:
    post = net.post("alice")
    first, second = net.repost("bob", post), net.repost("bob", post)
    tables.apply_each([post, first, second])
    items = tables.rows("feed_item", "uri", "type = 'repost'")
    assert items == [(first.uri,)]
    tables.apply(net.delete(first))
    assert tables.rows("feed_item", "uri", "type = 'repost'") == [(second.uri,)]
    assert tables.counts(post) == (0, 0, 1, 0)


def test_likes_via_a_repost_tell_the_reposter_too(tables: Tables, net: Network) -> None:
    post = net.post("alice")
    repost = net.repost("bob", post)
    carols, bobs, own = (net.like(who, post, via=repost) for who in ("carol", "bob", "alice"))
    tables.apply(post, repost, carols, bobs, own)
    assert [row[:3] for row in notes_of(tables, carols)] == [
        (did_of("alice"), "like", post.uri), (did_of("bob"), "like-via-repost", repost.uri),
    ]  # fmt: skip
    assert [row[:2] for row in notes_of(tables, bobs)] == [(did_of("alice"), "like")]
    assert notes_of(tables, own) == []
    assert tables.counts(post) == (3, 0, 1, 0)
    again = net.repost("carol", post, via=repost)
    tables.apply(again)
    assert [row[1] for row in notes_of(tables, again)] == ["repost", "repost-via-repost"]


def test_a_feed_generator_can_be_liked(tables: Tables, net: Network) -> None:
    feed = net.put(
        "alice", "app.bsky.feed.generator", {"did": "did:web:feeds.test", "displayName": "cats"}
    )
    tables.apply(feed, net.like("bob", feed))
    assert tables.rows("post_agg", 'uri, "likeCount"') == [(feed.uri, 1)]
    assert [reason for reason, _ in tables.notified("alice")] == ["like"]


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


def test_profiles_and_labelers_have_one_rkey(tables: Tables, net: Network) -> None:
    tables.apply(
        net.put("alice", "app.bsky.actor.profile", {"displayName": "x"}, "other"),
        net.put("alice", "app.bsky.labeler.service", {"policies": {"labelValues": []}}, "other"),
        net.put("alice", "app.bsky.labeler.service", {"policies": {"labelValues": []}}, "self"),
    )
    assert tables.rows("profile") == []
    assert [row[0].rpartition("/")[2] for row in tables.rows("labeler", "uri")] == ["self"]
    assert len(tables.rows("record")) == 3


def test_joining_through_a_starter_pack_is_told_once(tables: Tables, net: Network) -> None:
    pack = net.put("alice", "app.bsky.graph.starterpack", {"name": "p", "list": LIST})
    joined = {"displayName": "bob", "joinedViaStarterPack": pack.reference}
    profile = net.put("bob", "app.bsky.actor.profile", joined, "self")
    tables.apply_each([pack, profile, net.update(profile, {**joined, "displayName": "b"})])
    assert tables.rows("notification", 'did, reason, "reasonSubject", "sortAt"') == [
        (did_of("alice"), "starterpack-joined", pack.uri, time_of(profile.number))
    ]


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
    assert tables.rows("post", '"createdAt", "indexedAt", "sortAt"') == [
        (stored, seen, min(stored, seen))
    ]
    assert tables.rows("feed_item", '"sortAt"') == [(min(stored, seen),)]


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


def test_muted_threads_do_not_notify(tables: Tables, net: Network) -> None:
    root = net.post("alice")
    own = net.reply("alice", root)
    tables.apply(root, own)
    tables.database.execute(
        'INSERT INTO thread_mute ("rootUri", "mutedByDid", "createdAt") VALUES (%s, %s, %s)',
        (root.uri, did_of("alice"), time_of(1)),
    )
    muted = [make(who, post) for make in (net.reply, net.quote, net.like, net.repost)
             for who, post in (("bob", root), ("carol", own))]  # fmt: skip
    tables.apply(*muted)
    assert tables.notified("alice") == []
    assert len(tables.rows("like")) == 2
    tables.database.execute("DELETE FROM thread_mute")
    tables.apply(net.reply("bob", root), net.like("dan", root))
    assert [reason for reason, _ in tables.notified("alice")] == ["like", "reply"]
