"""Golden cases of threads, verifications and mismatched records, as whole rows of every table."""

from collections.abc import Sequence

import pytest

from rsky_pipeline.indexer.accounts.purge import purge_account
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.entries import now_text, read_entry
from tests.integration.indexer.golden import Note, expect, note_row
from tests.integration.indexer.kit import (
    Deletion,
    Event,
    Network,
    Put,
    Row,
    Tables,
    did_of,
    notes_of,
    repo,
)
from tests.integration.indexer.test_gates import POSTGATE, REFUSED, THREADGATE, gate, rules


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
    events: list[Event] = [root, first, fork, others, second, below, alone]
    tables.apply_each(events)
    told: list[Note] = [(others, "ann", "reply", first), (below, "bob", "reply", others)]
    expect(
        tables, events, told=told, people={"ann": (0, 0, 6), "bob": (0, 0, 1)},
        counts=[(root, (0, 2, 0, 0)), (first, (0, 2, 0, 0)), (others, (0, 1, 0, 0))],
    )  # fmt: skip
    assert by_uri(*tables.dicts("op_thread_reply")) == by_uri(
        chain(root, root, first), chain(root, root, fork), chain(root, first, second),
        chain(root, others, below),
    )  # fmt: skip
    events += [net.delete(first), net.delete(fork)]
    tables.apply(*events[-2:])
    # What hangs below a deleted reply keeps its place.
    expect(
        tables, events, told=told, people={"ann": (0, 0, 4), "bob": (0, 0, 1)},
        counts=[(first, (0, 2, 0, 0)), (others, (0, 1, 0, 0))], ended=[first, fork],
    )  # fmt: skip


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
    events = [root, reply, edited]
    tables.apply_each(events)
    expect(tables, events, people={"ann": (0, 0, 2)}, counts=[(root, (0, 1, 0, 0))])
    assert tables.dicts("op_thread_reply") == [chain(root, root, reply)]


def test_the_author_of_a_deleted_root_is_not_told(tables: Tables, net: Network) -> None:
    root = net.post("ann")
    first = net.reply("bob", root)
    events: list[Event] = [root, first, net.delete(root)]
    tables.apply(*events)
    deeper = net.reply("cyd", first, root)
    tables.apply(deeper)
    expect(
        tables, [*events, deeper], people={"bob": (0, 0, 1), "cyd": (0, 0, 1)},
        counts=[(root, (0, 1, 0, 0)), (first, (0, 1, 0, 0))],
        told=[(first, "ann", "reply", root), (deeper, "bob", "reply", first)],
    )  # fmt: skip


def test_a_gate_stays_in_force_after_its_post_is_deleted(tables: Tables, net: Network) -> None:
    root = net.post("ann")
    closing = gate(net, root, allow=rules("followingRule"))
    follow = net.follow("ann", "bob")
    tables.apply(root, closing, follow)
    first = net.reply("bob", root)
    gone = net.delete(root)
    tables.apply(first, gone)
    allowed, refused = net.reply("bob", first, root), net.reply("cyd", first, root)
    tables.apply(allowed, refused)
    expect(
        tables, [root, closing, follow, first, gone, allowed, refused],
        told=[(follow, "bob", "follow", None), (first, "ann", "reply", root)],
        people={"ann": (0, 1, 0), "bob": (1, 0, 2), "cyd": (0, 0, 1)},
        counts=[(root, (0, 1, 0, 0)), (first, (0, 1, 0, 0))], changed={refused.uri: REFUSED},
    )  # fmt: skip


def seen(puts: Sequence[Put]) -> list[Event]:
    """Return events that say no more of these records than that they came and went."""
    found: list[Event] = []
    for put in puts:
        found += [put, Deletion(put, put.number)]
    return found


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
    readings = [read_entry({b"event": put.payload}, registry.load()) for put in puts]
    reasons = {reading.refused.reason for reading in readings if reading.refused}
    assert reasons <= {"foreign_post", "foreign_list"}
    assert all(reading.refused for reading in readings)
    apply_batch(tables.database, readings, registry.load())
    # Their commits are known to have been seen, and nothing else is left of them.
    expect(tables, [post, *seen(puts)], people={"ann": (0, 0, 1)})


def test_a_verification_and_its_withdrawal_are_told(tables: Tables, net: Network) -> None:
    fields = {"subject": did_of("bob"), "handle": "bob.test", "displayName": "Bob"}
    made = net.put("ann", "app.bsky.graph.verification", fields)
    tables.apply(made)
    expect(tables, [made], told=[(made, "bob", "verified", None)])
    edited = net.update(made, {**fields, "displayName": "Robert"})
    tables.apply(edited)
    expect(tables, [made, edited], told=[(made, "bob", "verified", None)])
    gone = net.delete(made)
    before = now_text()
    tables.apply(gone)
    tables.apply(gone, made)
    (withdrawn,) = [row["sortAt"] for row in tables.dicts("notification")
                    if row["reason"] == "unverified"]  # fmt: skip
    assert before <= withdrawn <= now_text()
    unverified = {**note_row((edited, "bob", "unverified", None)), "sortAt": withdrawn}
    expect(tables, [made, edited, gone], told=[(made, "bob", "verified", None)],
           besides={"notification": [unverified]})  # fmt: skip


def test_a_verification_and_its_withdrawal_in_one_batch_are_told(
    tables: Tables, net: Network
) -> None:
    fields = {"subject": did_of("bob"), "handle": "bob.test", "displayName": "Bob"}
    made = net.put("ann", "app.bsky.graph.verification", fields)
    edited = net.update(made, {**fields, "displayName": "Robert"})
    tables.apply(made, edited, net.delete(made))
    assert notes_of(tables, made) == [
        (did_of("bob"), "unverified", None, edited.cid),
        (did_of("bob"), "verified", None, made.cid),
    ]


def test_a_verification_that_another_one_takes_over_is_not_withdrawn(
    tables: Tables, net: Network
) -> None:
    fields = {"subject": did_of("bob"), "handle": "bob.test", "displayName": "Bob"}
    one, two = (net.put("ann", "app.bsky.graph.verification", fields) for _ in range(2))
    events: list[Event] = [one, two, net.delete(one)]
    tables.apply_each(events)
    expect(tables, events, told=[(two, "bob", "verified", None)])
    purge_account(tables.database, did_of("ann"), registry.load())
    assert tables.notified() == []
