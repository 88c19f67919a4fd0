"""Replies that come before a post above them tell its author when it comes, as in order."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.database.errors import TransactionConflictError
from rsky_pipeline.indexer.accounts.purge import purge_account
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.collections.post_notifications import KEPT_FOR
from rsky_pipeline.indexer.core import apply
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.complete_revs import advance_actor_sync
from rsky_pipeline.indexer.core.locks import ReferenceLocks, lock_references
from rsky_pipeline.indexer.upkeep import TableUpkeep
from rsky_pipeline.observability.indexer import IndexerMetrics
from tests.integration.indexer.kit import (
    Event,
    Network,
    Put,
    Row,
    Tables,
    did_of,
    mention,
    quoting,
    read,
    time_of,
)
from tests.integration.indexer.snapshot import clear, differences, snapshot
from tests.integration.indexer.test_gates import gate

Waiting = list[tuple[Any, ...]]


def waiting(tables: Tables) -> Waiting:
    """Return (uri, missing, height) of what is remembered."""
    query = "SELECT uri, missing, height FROM rsky_pipeline.early_reply ORDER BY uri"
    return tables.database.query(query)


def replies_told(tables: Tables) -> list[Row]:
    """Return whole notifications of replies, without their ids."""
    rows = [{**row, "id": 0} for row in tables.dicts("notification") if row["reason"] == "reply"]
    return sorted(rows, key=repr)


def reply_note(reply: Put, above: Put) -> Row:
    """Return the notification that tells the author of a post of a reply below it."""
    return {
        "id": 0, "did": did_of(above.who), "recordUri": reply.uri, "recordCid": reply.cid,
        "author": did_of(reply.who), "reason": "reply", "reasonSubject": above.uri,
        "sortAt": time_of(reply.number),
    }  # fmt: skip


def thread(net: Network, *names: str) -> list[Put]:
    """Return posts of these people, each a reply to the one before it."""
    posts = [net.post(names[0])]
    for name in names[1:]:
        posts.append(net.reply(name, posts[-1], posts[0]))
    return posts


def in_order_and(tables: Tables, events: Sequence[Event], order: Sequence[Event]) -> None:
    """Fail unless an order ends in the rows of the events in order, with nothing remembered."""
    tables.apply_each(events)
    expected = snapshot(tables)
    clear(tables)
    tables.apply_each(order)
    assert differences(snapshot(tables), expected) == {}
    assert waiting(tables) == []


def test_a_chain_in_any_order_tells_four_levels_up(tables: Tables, net: Network) -> None:
    chain = thread(net, *(f"p{number}" for number in range(7)))
    expected = sorted(
        (reply_note(chain[low], chain[high])
         for low in range(7) for high in range(max(0, low - 4), low)), key=repr
    )  # fmt: skip
    assert len(expected) == 18
    for order in (chain[::-1], chain[::2] + chain[1::2], [*chain[3:], *chain[:3]]):
        tables.apply_each(order)
        assert replies_told(tables) == expected
        assert waiting(tables) == []
        clear(tables)


def test_what_is_missing_is_remembered_with_its_height(tables: Tables, net: Network) -> None:
    root, first, second, third = thread(net, "ann", "bob", "cyd", "dan")
    tables.apply(third, first)
    assert waiting(tables) == sorted([(first.uri, root.uri, 1), (third.uri, second.uri, 1)])
    tables.apply(second)
    assert waiting(tables) == sorted(
        [(first.uri, root.uri, 1), (second.uri, root.uri, 2), (third.uri, root.uri, 3)]
    )
    tables.apply(root)
    assert waiting(tables) == []
    assert len(replies_told(tables)) == 6


def test_everybody_is_told_once_for_the_first_reason(tables: Tables, net: Network) -> None:
    """Of three posts by one author the nearest counts; a mention and a quote come before it."""
    one, two, other = net.post("ann"), net.post("bob"), net.post("bob")
    near = net.reply("ann", one)
    mine = net.reply("cyd", near, one)
    reply = net.reply("dan", mine, one)
    mentioning = net.reply("dan", two, facets=mention("bob"))
    quotes = net.reply("dan", two, embed=quoting(other))
    own = net.reply("bob", quotes, two)
    events = [one, two, other, near, mine, reply, mentioning, quotes, own]
    tables.apply_each(events)
    assert reply_note(reply, near) in replies_told(tables)
    assert reply_note(reply, one) not in replies_told(tables)
    clear(tables)
    in_order_and(tables, events, events[::-1])


def test_a_hidden_reply_ends_the_way(tables: Tables, net: Network) -> None:
    root, hidden, below, lowest = thread(net, "ann", "bob", "cyd", "dan")
    hiding = gate(net, root, hiddenReplies=[hidden.uri, "at://ann.test"])
    tables.apply_each([hiding, lowest, below, hidden, root])
    told = [reply_note(lowest, below), reply_note(lowest, hidden), reply_note(below, hidden),
            reply_note(hidden, root)]  # fmt: skip
    assert replies_told(tables) == sorted(told, key=repr)
    assert waiting(tables) == []


def test_a_reply_that_a_gate_refuses_tells_nobody_later(tables: Tables, net: Network) -> None:
    root, refused = thread(net, "ann", "bob")
    closing = gate(net, root, allow=[])
    tables.apply_each([closing, refused])
    assert waiting(tables) == []
    tables.apply(root)
    assert replies_told(tables) == []


def test_muted_threads_stay_muted(tables: Tables, net: Network) -> None:
    root, first, second = thread(net, "ann", "bob", "cyd")
    tables.database.execute(
        'INSERT INTO thread_mute ("rootUri", "mutedByDid", "createdAt") VALUES (%s, %s, %s)',
        (root.uri, did_of("ann"), time_of(1)),
    )
    tables.apply_each([second, first, root])
    assert replies_told(tables) == [reply_note(second, first)]


@pytest.mark.parametrize("way", ["stream", "bulk"])
def test_history_above_a_live_reply_is_told(tables: Tables, net: Network, way: str) -> None:
    """The reply was news; that what is above it came as history does not change that."""
    root, first, second = thread(net, "ann", "bob", "cyd")
    tables.apply(second)
    past = [replace(put, history=True) for put in (first, root)]
    apply_batch(tables.database, read(past), registry.load(), bulk=way == "bulk")
    assert replies_told(tables) == sorted(
        [reply_note(second, first), reply_note(second, root)], key=repr
    )
    assert waiting(tables) == []


def test_history_below_is_no_news(tables: Tables, net: Network) -> None:
    root, first = thread(net, "ann", "bob")
    tables.apply_each([replace(first, history=True), root])
    assert replies_told(tables) == []
    assert waiting(tables) == []


@pytest.mark.parametrize("history", [False, True])
def test_an_edited_reply_is_remembered_anew(tables: Tables, net: Network, history: bool) -> None:
    root, first, second = thread(net, "ann", "bob", "cyd")
    edited = net.update(second, {**second.record, "facets": mention("ann")})
    edited = replace(edited, history=history)
    tables.apply_each([second, edited, first, root])
    rows = [{**row, "id": 0} for row in tables.dicts("notification")]
    written = time_of(second.number)
    named = {**reply_note(edited, root), "reason": "mention", "reasonSubject": None}
    assert sorted(rows, key=repr) == sorted(
        ({**named, "sortAt": written}, {**reply_note(edited, first), "sortAt": written},
         reply_note(first, root)), key=repr,
    )  # fmt: skip
    assert waiting(tables) == []


@pytest.mark.parametrize("how", ["deleted", "purged"])
def test_a_reply_that_is_gone_tells_nobody(tables: Tables, net: Network, how: str) -> None:
    root, first = thread(net, "ann", "bob")
    tables.apply(first)
    if how == "deleted":
        tables.apply(net.delete(first))
    else:
        purge_account(tables.database, did_of("bob"), registry.load())
    assert waiting(tables) == []
    tables.apply(root)
    assert tables.dicts("notification") == []


def test_what_can_never_come_is_not_waited_for(tables: Tables, net: Network) -> None:
    root, feed = net.post("ann"), net.put("ann", "app.bsky.feed.generator", {"did": "did:web:f"})
    handle = {"uri": root.uri.replace(did_of("ann"), "ann.test"), "cid": root.cid}
    tables.apply(root)
    for parent in (feed.reference, handle, {**root.reference, "uri": "at://did:plc:nobody"}):
        above = root.reference if parent is handle else parent
        tables.apply(net.post("bob", reply={"root": above, "parent": parent}))
    assert waiting(tables) == []


def test_what_waits_for_too_long_is_removed_and_the_rest_counted(
    tables: Tables, net: Network
) -> None:
    roots = [net.post("ann"), net.post("ann")]
    tables.apply(*(net.reply("bob", root) for root in roots))
    tables.database.execute(
        "UPDATE rsky_pipeline.early_reply SET noticed_at = now() - %s WHERE missing = %s",
        (KEPT_FOR, roots[0].uri),
    )
    metrics_registry = CollectorRegistry()
    metrics = IndexerMetrics(metrics_registry, ["firehose_live"], [])
    upkeep = TableUpkeep(lambda: Database.connect(tables.url, name="upkeep"), metrics)
    for step in upkeep.steps:
        while step(tables.database):
            pass
    assert [row[1] for row in waiting(tables)] == [roots[1].uri]
    assert metrics_registry.get_sample_value("indexer_early_replies") == 1


def test_another_worker_that_writes_the_missing_post_is_waited_for(
    tables: Tables, net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a post higher up, which no lock of the reply covers: the batch begins again."""
    root, missing, parent, reply = thread(net, "ann", "bob", "cyd", "dan")
    tables.apply(root, parent)
    written, begun_again = threading.Event(), threading.Event()
    begins: list[set[str]] = []

    def advance(tx: Transaction, revs: Any) -> None:
        advance_actor_sync(tx, revs)
        if threading.current_thread().name == "writer":
            written.set()
            assert begun_again.wait(20), "the other one did not begin again"

    def lock(tx: Transaction, operations: Any, collections: Any, also: Any) -> ReferenceLocks:
        if threading.current_thread().name == "looker":
            begins.append(set(also))
            if len(begins) == 2:
                begun_again.set()
        return lock_references(tx, operations, collections, also)

    monkeypatch.setattr(apply, "advance_actor_sync", advance)
    monkeypatch.setattr(apply, "lock_references", lock)
    with (
        Database.connect(tables.url, name="writer") as one,
        Database.connect(tables.url, name="looker") as two,
    ):
        writer = threading.Thread(name="writer", target=run, args=(one, missing))
        looker = threading.Thread(name="looker", target=run, args=(two, reply))
        writer.start()
        assert written.wait(20)
        looker.start()
        writer.join()
        looker.join()
    assert begins == [set(), {missing.uri}]
    assert waiting(tables) == []
    assert replies_told(tables) == sorted(
        (reply_note(low, high) for low, high in (
            (missing, root), (parent, missing), (parent, root), (reply, parent), (reply, missing),
            (reply, root),
        )), key=repr
    )  # fmt: skip


def run(database: Database, put: Put) -> None:
    apply_batch(database, read([put]), registry.load())


def test_a_row_that_another_worker_needs_is_a_conflict_and_no_wait(
    tables: Tables, net: Network
) -> None:
    root, reply = thread(net, "ann", "bob")
    tables.apply(reply)
    with Database.connect(tables.url, name="other") as other, other.transaction() as tx:
        tx.execute("DELETE FROM rsky_pipeline.early_reply")
        for event in (root, net.delete(reply)):
            with pytest.raises(TransactionConflictError):
                tables.apply(event)


def test_batches_without_posts_do_not_look_for_early_replies(
    tables: Tables, net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, reply = thread(net, "ann", "bob")
    statements: list[str] = []

    def noted(self: Transaction, sql: str, params: Sequence[Any] = ()) -> list[Any]:
        statements.append(sql)
        return query(self, sql, params)

    query = Transaction.query
    monkeypatch.setattr(Transaction, "query", noted)

    def looks(*events: Event) -> int:
        statements.clear()
        tables.apply(*events)
        return sum("early_reply" in sql for sql in statements)

    assert looks(net.like("bob", root), net.follow("bob", "ann")) == 0
    assert looks(root, reply) == 1, "does anybody wait for them?"
    assert looks(net.delete(reply)) == 1
