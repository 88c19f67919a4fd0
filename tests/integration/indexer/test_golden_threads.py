"""Golden cases of threads, mutes, verifications and mismatched records, as whole rows."""

from typing import Any

import pytest

from rsky_pipeline.indexer.apply import apply_batch
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.events import read_entry
from rsky_pipeline.indexer.purge import purge_account
from tests.integration.indexer.kit import (
    NOW,
    Event,
    Network,
    Put,
    Row,
    Tables,
    did_of,
    mention,
    notes_of,
    repo,
    time_of,
)
from tests.integration.indexer.test_gates import POSTGATE, THREADGATE, gate


def post_row(put: Put, **others: Any) -> Row:
    """Return the row of a post without reply, gates, languages and tags."""
    time = time_of(put.number)
    return {
        "uri": put.uri, "cid": put.cid, "creator": did_of(put.who), "text": put.record["text"],
        "replyRoot": None, "replyRootCid": None, "replyParent": None, "replyParentCid": None,
        "createdAt": time, "indexedAt": time, "sortAt": time, "langs": None, "tags": None,
        "invalidReplyRoot": None, "violatesThreadGate": None, "violatesEmbeddingRules": None,
        "hasThreadGate": None, "hasPostGate": None,
    } | others  # fmt: skip


def reply_row(put: Put, root: Put, parent: Put, **others: Any) -> Row:
    """Return the row of a reply."""
    reply = {"replyRoot": root.uri, "replyRootCid": root.cid,
             "replyParent": parent.uri, "replyParentCid": parent.cid}  # fmt: skip
    return post_row(put, **{**reply, **others})


def by_uri(*rows: Row) -> list[Row]:
    return sorted(rows, key=lambda row: str(row["uri"]))


def chain(root: Put, parent: Put, reply: Put) -> Row:
    return {"rootUri": root.uri, "parentUri": parent.uri, "uri": reply.uri, "deletedAt": None}


def test_the_author_s_own_thread(tables: Tables, net: Network) -> None:
    root = net.post("ann")
    first, fork = net.reply("ann", root), net.reply("ann", root)
    others = net.reply("bob", first, root)
    second, below = net.reply("ann", first, root), net.reply("ann", others, root)
    alone = net.post("ann")
    tables.apply_each([root, first, fork, others, second, below, alone])
    rows = [chain(root, root, first), chain(root, root, fork), chain(root, first, second),
            chain(root, others, below)]  # fmt: skip
    assert by_uri(*tables.dicts("op_thread_reply")) == by_uri(*rows)
    assert by_uri(*tables.dicts("post")) == by_uri(
        post_row(root), reply_row(first, root, root), reply_row(fork, root, root),
        reply_row(others, root, first), reply_row(second, root, first),
        reply_row(below, root, others), post_row(alone),
    )  # fmt: skip
    tables.apply(net.delete(first), net.delete(fork))
    ended = {row["uri"] for row in tables.dicts("op_thread_reply") if row["deletedAt"]}
    assert ended == {first.uri, fork.uri}, "what hangs below a deleted reply keeps its place"


@pytest.mark.parametrize("way", ["in order", "in one batch", "deletion first", "after its repo"])
def test_a_deleted_reply_leaves_its_mark_however_it_came(
    tables: Tables, net: Network, way: str
) -> None:
    root = net.post("ann")
    first = net.reply("ann", root)
    second, gone = net.reply("ann", first, root), net.delete(first)
    tables.apply(root)
    batches: dict[str, list[list[Event]]] = {
        "in order": [[first], [second], [gone]],
        "in one batch": [[first, second, gone]],
        "deletion first": [[gone], [first, second], [first]],
        # The repo was brought in without it, and its deletion is never heard of.
        "after its repo": [[second], [repo("ann", 30, complete=True)], [first]],
    }
    for batch in batches[way]:
        tables.apply(*batch)
    marked = [
        {**row, "deletedAt": bool(row["deletedAt"])} for row in tables.dicts("op_thread_reply")
    ]
    assert by_uri(*marked) == by_uri(
        {**chain(root, root, first), "deletedAt": True},
        {**chain(root, first, second), "deletedAt": False},
    )
    assert {row[0] for row in tables.rows("post", "uri")} == {root.uri, second.uri}


def test_an_edited_reply_of_the_author_stays_in_the_thread(tables: Tables, net: Network) -> None:
    """Officially the edit leaves it marked as deleted."""
    root = net.post("ann")
    reply = net.reply("ann", root)
    edited = net.update(reply, {**reply.record, "text": "edited"})
    tables.apply_each([root, reply, edited])
    assert tables.dicts("op_thread_reply") == [chain(root, root, reply)]
    # The record keeps its createdAt, which sorts it; it was seen when it was edited.
    seen = {"createdAt": time_of(reply.number), "sortAt": time_of(reply.number)}
    assert by_uri(*tables.dicts("post")) == by_uri(
        post_row(root), reply_row(edited, root, root, **seen)
    )


def test_the_author_of_a_deleted_root_is_not_told(tables: Tables, net: Network) -> None:
    root = net.post("ann")
    first = net.reply("bob", root)
    tables.apply(root, first, net.delete(root))
    deeper = net.reply("cyd", first, root)
    tables.apply(deeper)
    assert notes_of(tables, deeper) == [(did_of("bob"), "reply", first.uri, deeper.cid)]
    assert by_uri(*tables.dicts("post")) == by_uri(
        reply_row(first, root, root), reply_row(deeper, root, first)
    )


def test_a_gate_stays_in_force_after_its_post_is_deleted(tables: Tables, net: Network) -> None:
    root = net.post("ann")
    rules = [{"$type": f"{THREADGATE}#followingRule"}]
    tables.apply(root, gate(net, root, allow=rules), net.follow("ann", "bob"))
    first = net.reply("bob", root)
    tables.apply(first, net.delete(root))
    allowed, refused = net.reply("bob", first, root), net.reply("cyd", first, root)
    tables.apply(allowed, refused)
    assert by_uri(*tables.dicts("post")) == by_uri(
        reply_row(first, root, root), reply_row(allowed, root, first),
        reply_row(refused, root, first, invalidReplyRoot=False, violatesThreadGate=True),
    )  # fmt: skip
    assert tables.counts(first) == (0, 1, 0, 0)
    assert tables.profile_counts("cyd") == (0, 0, 1)


def test_any_of_several_rules_lets_in(tables: Tables, net: Network) -> None:
    root = net.post("carol", facets=mention("dan"))
    kinds = ("mentionRule", "followerRule", "followingRule")
    closing = gate(net, root, allow=[{"$type": f"{THREADGATE}#{kind}"} for kind in kinds])
    tables.apply(net.follow("bob", "carol"), net.follow("carol", "alice"), root, closing)
    replies = [net.reply(who, root) for who in ("dan", "bob", "alice", "eve", "carol")]
    tables.apply(*replies)
    refused = {"invalidReplyRoot": False, "violatesThreadGate": True}
    assert by_uri(*tables.dicts("post")) == by_uri(
        post_row(root, hasThreadGate=True),
        *(reply_row(put, root, root, **(refused if put.who == "eve" else {})) for put in replies),
    )
    assert tables.counts(root) == (0, 4, 0, 0)


def test_a_list_rule_that_names_a_post_lets_nobody_in(tables: Tables, net: Network) -> None:
    root = net.post("ann")
    closing = gate(net, root, allow=[{"$type": f"{THREADGATE}#listRule", "list": root.uri}])
    tables.apply(root, closing)
    reply = net.reply("bob", root)
    tables.apply(reply)
    assert by_uri(*tables.dicts("post")) == by_uri(
        post_row(root, hasThreadGate=True),
        reply_row(reply, root, root, invalidReplyRoot=False, violatesThreadGate=True),
    )


@pytest.mark.parametrize("kind", [THREADGATE, POSTGATE, "app.bsky.graph.listitem"])
def test_what_speaks_for_somebody_else_is_refused(tables: Tables, net: Network, kind: str) -> None:
    """A bystander's gate, a gate of another rkey, and an item of somebody else's list."""
    post = net.post("ann")
    tables.apply(post)
    made = net.put("ann", "app.bsky.graph.list", {"name": "l", "purpose": "p"})
    if kind == "app.bsky.graph.listitem":
        puts = [net.put("bob", kind, {"list": made.uri, "subject": did_of("bob")})]
    else:
        rule = {"embeddingRules": [{"$type": f"{POSTGATE}#disableRule"}], "allow": []}
        puts = [net.put(who, kind, {"post": post.uri, **rule}, rkey)
                for who, rkey in (("bob", post.rkey), ("ann", "another"))]  # fmt: skip
    readings = [read_entry({b"event": put.payload}, registry.load(), NOW) for put in puts]
    reasons = {reading.refused.reason for reading in readings if reading.refused}
    assert reasons <= {"foreign_post", "foreign_list"}
    assert all(reading.refused for reading in readings)
    apply_batch(tables.database, readings, registry.load())
    assert tables.rows("record", "uri") == [(post.uri,)]
    assert tables.dicts("post") == [post_row(post)]
    assert tables.rows("thread_gate") == tables.rows("post_gate") == tables.rows("list_item") == []


def test_after_unmuting_a_thread_everything_is_told(tables: Tables, net: Network) -> None:
    root = net.post("ann")
    own = net.reply("ann", root)
    tables.apply(root, own)
    tables.database.execute(
        'INSERT INTO thread_mute ("rootUri", "mutedByDid", "createdAt") VALUES (%s, %s, %s)',
        (root.uri, did_of("ann"), time_of(1)),
    )
    muted = [make("bob", post) for make in (net.reply, net.quote, net.like, net.repost)
             for post in (root, own)]  # fmt: skip
    tables.apply(*muted)
    assert tables.dicts("notification") == []
    assert tables.counts(root) == (1, 2, 1, 1)
    tables.database.execute("DELETE FROM thread_mute")
    tables.apply(*(net.delete(put) for put in muted[4:]))
    replies = [net.reply("bob", root), net.reply("bob", own, root)]
    told = [*replies, net.like("bob", root), net.repost("bob", own)]
    tables.apply(*told)
    rows = [{name: value for name, value in row.items() if name != "id"}
            for row in tables.dicts("notification")]  # fmt: skip
    subjects = (root, own, root, own)
    assert sorted(rows, key=repr) == sorted((
        {"did": did_of("ann"), "recordUri": put.uri, "recordCid": put.cid, "author": did_of("bob"),
         "reason": put.collection.rpartition(".")[2].replace("post", "reply", 1)
         if put in replies else put.collection.rpartition(".")[2],
         "reasonSubject": subject.uri, "sortAt": time_of(put.number)}
        for put, subject in zip(told, subjects, strict=True)
    ), key=repr)  # fmt: skip


def test_a_verification_and_its_withdrawal_are_told(tables: Tables, net: Network) -> None:
    fields = {"subject": did_of("bob"), "handle": "bob.test", "displayName": "Bob"}
    made = net.put("ann", "app.bsky.graph.verification", fields)
    tables.apply(made)
    time = time_of(made.number)
    assert tables.dicts("verification") == [
        {"uri": made.uri, "cid": made.cid, "rkey": made.rkey, "creator": did_of("ann"),
         "createdAt": time, "indexedAt": time, "sortedAt": time, **fields}
    ]  # fmt: skip
    assert notes_of(tables, made) == [(did_of("bob"), "verified", None, made.cid)]
    edited = net.update(made, {**fields, "displayName": "Robert"})
    tables.apply(edited)
    assert len(notes_of(tables, made)) == 1
    gone = net.delete(made)
    tables.apply(gone)
    tables.apply(gone, made)
    assert tables.dicts("verification") == tables.dicts("record") == []
    assert notes_of(tables, made) == [
        (did_of("bob"), "unverified", None, edited.cid),
        (did_of("bob"), "verified", None, made.cid),
    ]


def test_a_verification_that_another_one_takes_over_is_not_withdrawn(
    tables: Tables, net: Network
) -> None:
    fields = {"subject": did_of("bob"), "handle": "bob.test", "displayName": "Bob"}
    one, two = (net.put("ann", "app.bsky.graph.verification", fields) for _ in range(2))
    tables.apply_each([one, two, net.delete(one)])
    assert tables.rows("verification", "uri") == [(two.uri,)]
    assert tables.notified() == [("verified", two.uri)]
    purge_account(tables.database, did_of("ann"), registry.load())
    assert tables.notified() == []
