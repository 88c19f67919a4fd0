"""Accounts, repos, labels and handles."""

import threading
from contextlib import closing
from itertools import pairwise, permutations
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry

from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import TransactionConflictError
from rsky_pipeline.indexer.accounts import handles as handles_module
from rsky_pipeline.indexer.accounts import purge
from rsky_pipeline.indexer.accounts.checks import LookupUnknownError
from rsky_pipeline.indexer.accounts.deletions import DeletionChecks
from rsky_pipeline.indexer.accounts.handles import BUSY_PAUSE_SECONDS, HandleChecks
from rsky_pipeline.indexer.accounts.purge import purge_account
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core import labels as labels_module
from rsky_pipeline.indexer.core.labels import LabelRow, apply_labels
from rsky_pipeline.observability.indexer import IndexerMetrics
from tests.integration.indexer.kit import (
    Network,
    Tables,
    account,
    did_of,
    identity,
    recounted,
    repo,
    rev_of,
)
from tests.stores import execute


def status(tables: Tables, who: str) -> str | None:
    ((found,),) = tables.rows("actor", '"upstreamStatus"', f"did = '{did_of(who)}'")
    assert found is None or isinstance(found, str)
    return found


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("deactivated", "deactivated"), ("Takendown", "takendown"), ("suspended", "suspended"),
        ("deleted", "deleted"), (None, "deactivated"), ("what is this", "deactivated"),
    ],
)  # fmt: skip
def test_an_inactive_account_is_never_shown_as_active(
    tables: Tables, sent: str | None, stored: str
) -> None:
    tables.apply(account("ann", 1, active=False, status=sent))
    assert status(tables, "ann") == stored
    tables.apply(account("ann", 2, active=True))
    assert status(tables, "ann") is None


def test_an_older_account_event_changes_nothing(tables: Tables) -> None:
    events = [
        account("ann", 1, active=False, status="deactivated"),
        account("ann", 2, active=True),
        account("ann", 3, active=False, status="takendown"),
    ]
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        tables.apply_each([events[number] for number in order])
        assert status(tables, "ann") == "takendown"
    tables.apply(events[1], events[0])
    assert status(tables, "ann") == "takendown"


@pytest.mark.parametrize("batches", [1, 2])
def test_statuses_of_one_relay_are_ordered_by_its_stream(tables: Tables, batches: int) -> None:
    """Its hosts' clocks differ: an earlier time may well be the later event."""
    events = [
        account("ann", 1, active=False, status="deactivated", relay="r", time=100),
        account("ann", 2, active=True, relay="r", time=80),
        account("bob", 3, active=True, relay="r", time=340),
        account("bob", 4, active=False, status="takendown", relay="r", time=100),
    ]
    for order in (events, events[::-1]):
        if batches == 1:
            tables.apply(*order)
        else:
            tables.apply_each(order)
        assert (status(tables, "ann"), status(tables, "bob")) == (None, "takendown")
    stored = tables.database.query(
        "SELECT relay, seq, active, status, latest > event_time FROM rsky_pipeline.account_event "
        "ORDER BY did"
    )
    assert stored == [("r", 2, True, None, True), ("r", 4, False, "takendown", True)]
    # Between relays the latest time of each counts, also one of an event before its last.
    tables.apply(account("bob", 9, active=True, relay="other", time=200))
    assert status(tables, "bob") == "takendown"
    tables.apply(account("bob", 10, active=True, relay="other", time=400))
    assert status(tables, "bob") is None


def test_all_events_of_a_batch_count(tables: Tables) -> None:
    tables.apply(
        account("ann", 2, active=False, status="takendown", relay="r"),
        account("ann", 1, active=True, relay="r"),
    )
    assert status(tables, "ann") == "takendown"


def test_events_of_several_relays_are_kept_with_the_account(tables: Tables) -> None:
    tables.apply(account("ann", 900, active=True, relay="a", time=50))
    tables.apply(account("ann", 5, active=False, status="suspended", relay="b", time=60))
    assert status(tables, "ann") == "suspended"
    tables.apply(account("ann", 901, active=False, status="deactivated", relay="a", time=55))
    assert status(tables, "ann") == "suspended"
    tables.apply(account("ann", 6, active=True, relay="b", time=61))
    assert status(tables, "ann") is None


def test_a_row_of_a_program_that_named_no_relay_is_taken_up(tables: Tables) -> None:
    tables.apply(account("ann", 7, active=False, status="deactivated"))
    tables.database.execute(
        "UPDATE rsky_pipeline.account_event SET relay = NULL, active = NULL, status = NULL"
    )
    tables.apply(account("ann", 3, active=True, relay="r", time=6))
    assert status(tables, "ann") == "deactivated"
    tables.apply(account("ann", 4, active=True, relay="r", time=8))
    assert status(tables, "ann") is None


def test_repo_revs_never_go_back(tables: Tables) -> None:
    net = Network()
    post = net.post("ann")
    tables.apply(repo("ann", 9), post)
    assert tables.rows("actor_sync", '"repoRev"') == [(rev_of(9),)]
    tables.apply(repo("ann", 5))
    assert tables.rows("actor_sync", '"repoRev"') == [(rev_of(9),)]
    tables.apply(net.put("ann", "app.bsky.never.heard", {}, number=20))
    assert tables.rows("actor_sync", '"repoRev"') == [(rev_of(20),)]


def test_history_does_not_claim_a_rev_before_its_end(tables: Tables) -> None:
    tables.apply(Network(history=True).post("ann"))
    assert tables.rows("actor_sync") == []


def test_every_account_of_an_event_has_an_actor(tables: Tables) -> None:
    net = Network()
    tables.apply(net.post("ann"), identity("bob"), account("cyd", 1, active=True), repo("dan", 1))
    names = sorted(did_of(name) for name in ("ann", "bob", "cyd", "dan"))
    assert [row[0] for row in tables.rows("actor", "did")] == names
    queued = tables.database.query("SELECT did, forced FROM rsky_pipeline.handle_check ORDER BY 1")
    assert queued == [(did, did == did_of("bob")) for did in names]


def test_a_purged_account_leaves_nothing(tables: Tables) -> None:
    net = Network()
    post, hers = net.post("ann"), net.post("bob")
    events = [post, hers, net.like("ann", hers), net.repost("ann", hers), net.follow("ann", "bob")]
    events += [net.quote("ann", hers), net.reply("ann", hers), net.like("bob", post)]
    events += [net.repost("bob", post), net.quote("bob", post), net.follow("bob", "ann")]
    tables.apply(*events)
    purge_account(tables.database, did_of("ann"), registry.load())
    assert purge_account(tables.database, did_of("ann"), registry.load()) == 0
    assert tables.counts(hers) == (0, 0, 0, 0)
    assert tables.profile_counts("bob") == (0, 1, 2)
    assert tables.rows("actor", "did") == [(did_of("bob"),)]
    assert tables.notified() == []
    for table, column in (("record", "did"), ("post", "creator"), ("like", "creator"),
                          ("feed_item", '"originatorDid"'), ("actor_sync", "did")):  # fmt: skip
        assert {row[0] for row in tables.rows(table, column)} == {did_of("bob")}, table
    recounted(tables)


def test_a_purge_takes_packs_threads_and_late_notifications_along(tables: Tables) -> None:
    """Officially the first two stay, and notifications that come after the deletion."""
    net = Network()
    post = net.post("ann")
    pack = net.put("ann", "app.bsky.graph.starterpack", {"name": "p", "list": post.uri})
    tables.apply(post, net.reply("ann", post), pack, net.like("bob", post))
    tables.apply(account("ann", 20, active=False, status="deleted"))
    between = net.repost("bob", post)
    tables.apply(between)
    assert ("repost", between.uri) in tables.notified("ann")
    purge_account(tables.database, did_of("ann"), registry.load())
    assert tables.rows("starter_pack") == tables.rows("op_thread_reply") == []
    assert tables.notified("ann") == []
    later = net.like("cyd", post)
    tables.apply(later)
    assert tables.notified("ann") == [("like", later.uri)]


def test_an_account_of_many_records_is_purged_as_a_whole(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "BATCH_RECORDS", 2)
    net = Network()
    tables.apply(*(net.like("ann", net.post("bob")) for _ in range(4)))
    assert purge_account(tables.database, did_of("ann"), registry.load()) == 4
    assert tables.rows("record", "uri", f"did = '{did_of('ann')}'") == []
    assert tables.rows("actor", "did") == []


def label(cts: str, *, neg: bool = False, cid: str = "", exp: str | None = None) -> LabelRow:
    return LabelRow(
        "did:plc:lab", "did:plc:ann", cid, "spam", neg, f"2024-01-{cts}T00:00:00.000Z", exp
    )


def test_the_newest_label_stands(tables: Tables) -> None:
    def labels() -> list[tuple[object, ...]]:
        return tables.rows("label", "cid, neg, cts")

    apply_labels(tables.database, [label("02"), label("01", neg=True)])
    assert labels() == [("", False, label("02").cts)]
    assert apply_labels(tables.database, [label("03", neg=True)]) == (0, 1)
    assert apply_labels(tables.database, [label("02"), label("03")]) == (0, 0)
    assert labels() == [("", True, label("03").cts)]
    apply_labels(tables.database, [label("03", cid="c"), label("04", exp="2025")])
    assert labels() == [("", False, label("04").cts), ("c", False, label("04").cts)]


STATEMENTS = {
    "another version negated": [("01", "c1", False, None), ("02", "c2", True, None)],
    "negated without a version": [("01", "c1", False, None), ("02", "", True, None)],
    "negated for one version": [("01", "", False, None), ("02", "c1", True, None)],
    "applied again to another": [("01", "c1", True, None), ("02", "c2", False, None)],
    "expires by a later word": [("01", "c1", False, None), ("02", "c2", False, "2030")],
    "lasts by a later word": [("01", "c1", False, "2020"), ("02", "", False, None)],
    "at one time": [("01", "c1", False, None), ("01", "c2", True, None)],
    "three": [("01", "c1", False, None), ("03", "", True, None), ("02", "c2", False, "2030")],
    "back again": [("01", "c1", False, None), ("02", "", True, None), ("03", "c1", False, None)],
}


@pytest.mark.parametrize("said", STATEMENTS.values(), ids=STATEMENTS.keys())
@pytest.mark.parametrize("batches", [True, False])
def test_all_rows_of_a_label_have_its_newest_state(
    tables: Tables, said: list[tuple[str, str, bool, str | None]], batches: bool
) -> None:
    """Whatever version each statement names, and in any order of arrival."""
    statements = [label(cts, neg=neg, cid=cid, exp=exp) for cts, cid, neg, exp in said]
    newest = max(statements, key=lambda one: (one.cts, one.neg))
    other = label("05", cid="c1")._replace(val="other", uri=statements[0].uri)
    for order in permutations(statements):
        tables.database.execute("TRUNCATE label")
        apply_labels(tables.database, [other])
        if batches:
            for one in order:
                apply_labels(tables.database, [one])
        else:
            apply_labels(tables.database, order)
        apply_labels(tables.database, order[:1])
        found = tables.rows("label", "cid, neg, cts, exp", "val <> 'other'")
        assert found == [
            (cid, newest.neg, newest.cts, newest.exp)
            for cid in sorted({one.cid for one in statements})
        ]
    assert tables.rows("label", "cid, neg, cts", "val = 'other'") == [("c1", False, other.cts)]


def test_workers_with_statements_about_one_subject_see_each_other(tables: Tables) -> None:
    """The second waits until the first is committed, and then finds its rows."""
    ready = threading.Barrier(3)

    def write(labels: list[LabelRow]) -> None:
        with closing(Database.connect(tables.url, name="labels", by_key=True)) as database:
            ready.wait()
            for one in labels:
                apply_labels(database, [one])

    cids = [f"c{number}" for number in range(60)]
    parts = ([label("01", cid=cid) for cid in cids], [label("02", neg=True)],
             [label("01", cid=cid) for cid in cids[::-1]])  # fmt: skip
    threads = [threading.Thread(target=write, args=(list(part),)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tables.rows("label", "DISTINCT neg, cts") == [(True, label("02").cts)]


def test_statements_wait_for_those_of_another_worker(tables: Tables) -> None:
    """What it writes about another version would not be seen otherwise."""
    with closing(Database.connect(tables.url, name="labels", by_key=True)) as second:
        thread = threading.Thread(target=apply_labels, args=(second, [label("01", cid="c2")]))
        with tables.database.transaction() as tx:
            tx.query(labels_module._LOCK)
            thread.start()
            waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            while thread.is_alive() and not tx.query(waits):
                thread.join(0.01)
            columns = "src, uri, cid, val, neg, cts"
            values = (*label("02", cid="c1")[:4], True, label("02").cts)
            tx.execute(f"INSERT INTO label ({columns}) VALUES (%s, %s, %s, %s, %s, %s)", values)
        thread.join(30)
    assert tables.rows("label", "cid, neg") == [("c1", True), ("c2", True)]


async def check_handles(
    tables: Tables, claims: dict[str, str], answers: dict[str, str | None]
) -> IndexerMetrics:
    """Settle all queued checks with documents that claim handles, and answers of the network."""

    async def find_document(did: str, _forced: bool) -> DidDocument | None:
        handle = claims.get(did)
        return None if handle is None else DidDocument(did, handle, None, None)

    async def find_did(handle: str) -> str | None:
        if handle not in answers:
            raise LookupUnknownError(handle)
        return answers[handle]

    def open_database() -> Database:
        return Database.connect(tables.url, name="handles")

    metrics = IndexerMetrics(CollectorRegistry(), ["firehose_live"], [])
    checks = HandleChecks("worker", open_database, find_document, find_did, metrics)
    while await checks.work_once():
        pass
    checks.close()
    return metrics


async def test_handles_need_both_directions(tables: Tables) -> None:
    tables.apply(*(identity(name) for name in ("ann", "bob", "cyd", "dan")))
    claims = {did_of("ann"): "ann.test", did_of("bob"): "ann.test", did_of("dan"): "dan.test"}
    await check_handles(tables, claims, {"ann.test": did_of("ann")})
    handles = dict(tables.rows("actor", "did, handle"))
    assert handles == {
        did_of("ann"): "ann.test", did_of("bob"): None, did_of("cyd"): None, did_of("dan"): None,
    }  # fmt: skip
    # Nobody answered for dan.test, so it is asked again later.
    waiting = tables.database.query(
        "SELECT did, requested_at > now() FROM rsky_pipeline.handle_check"
    )
    assert waiting == [(did_of("dan"), True)]


async def test_a_handle_moves_to_its_new_owner(tables: Tables) -> None:
    tables.apply(identity("ann"), identity("bob"))
    ann, bob = did_of("ann"), did_of("bob")
    await check_handles(tables, {ann: "x.test", bob: "y.test"}, {"x.test": ann, "y.test": bob})
    tables.apply(identity("bob", 2))
    await check_handles(tables, {bob: "x.test"}, {"x.test": bob})
    assert dict(tables.rows("actor", "did, handle")) == {ann: None, bob: "x.test"}
    tables.apply(identity("ann", 3), identity("bob", 3))
    await check_handles(tables, {ann: "x.test", bob: "y.test"}, {"x.test": ann, "y.test": bob})
    assert dict(tables.rows("actor", "did, handle")) == {ann: "x.test", bob: "y.test"}


async def test_a_request_during_a_check_is_not_lost(tables: Tables) -> None:
    tables.apply(identity("ann"))
    asked: list[str] = []

    async def find_document(did: str, _forced: bool) -> DidDocument | None:
        asked.append(did)
        if len(asked) == 1:
            tables.apply(identity("ann", 2))
        return None

    async def find_did(_handle: str) -> str | None:
        return None

    metrics = IndexerMetrics(CollectorRegistry(), ["firehose_live"], [])
    checks = HandleChecks(
        "worker", lambda: Database.connect(tables.url, name="h"), find_document, find_did, metrics
    )
    while await checks.work_once():
        pass
    checks.close()
    assert asked == [did_of("ann")] * 2


async def test_a_check_that_a_restart_interrupted_is_taken_up_at_once(tables: Tables) -> None:
    tables.apply(identity("ann"))
    started = trio.Event()

    async def find_document(did: str, _forced: bool) -> DidDocument | None:
        if not started.is_set():
            started.set()
            await trio.sleep_forever()
        return DidDocument(did, "ann.test", None, None)

    async def find_did(_handle: str) -> str | None:
        return did_of("ann")

    def checks_of(worker: str) -> HandleChecks:
        metrics = IndexerMetrics(CollectorRegistry(), ["firehose_live"], [])
        return HandleChecks(
            worker, lambda: Database.connect(tables.url, name=worker), find_document, find_did,
            metrics,
        )  # fmt: skip

    with (
        closing(checks_of("a")) as first,
        closing(checks_of("a")) as second,
        closing(checks_of("b")) as other,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.work_once)
            await started.wait()
            nursery.cancel_scope.cancel()
        assert not await other.work_once()
        assert await second.work_once()
    assert tables.rows("actor", "handle") == [("ann.test",)]


async def test_a_check_whose_answer_met_a_conflict_is_taken_up_at_once(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after its lease, though the connection stands: somebody cancelled the statement."""
    tables.apply(identity("ann"))
    store, conflicts = handles_module._store, [TransactionConflictError("canceled")]

    def cancelled(*args: Any) -> int:
        if conflicts:
            raise conflicts.pop()
        return store(*args)

    monkeypatch.setattr(handles_module, "_store", cancelled)

    async def find_document(did: str, _forced: bool) -> DidDocument | None:
        return DidDocument(did, "ann.test", None, None)

    async def find_did(_handle: str) -> str | None:
        return did_of("ann")

    metrics = IndexerMetrics(CollectorRegistry(), ["firehose_live"], [])
    checks = HandleChecks(
        "a", lambda: Database.connect(tables.url, name="h"), find_document, find_did, metrics
    )
    with closing(checks), trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(checks.run)
            while tables.rows("actor", "handle") != [("ann.test",)]:
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()


async def test_looks_begin_one_by_one_while_events_wait(tables: Tables) -> None:
    tables.apply(*(identity(name) for name in ("ann", "bob", "cyd")))
    times: list[float] = []

    async def find_document(_did: str, _forced: bool) -> DidDocument | None:
        times.append(trio.current_time())
        return None

    async def find_did(_handle: str) -> str | None:
        return None

    metrics = IndexerMetrics(CollectorRegistry(), ["firehose_live"], [])
    checks = HandleChecks(
        "worker",
        lambda: Database.connect(tables.url, name="h"),
        find_document,
        find_did,
        metrics,
        is_busy=lambda: True,
    )
    with closing(checks):
        assert await checks.work_once()
    assert len(times) == 3
    assert all(after - before >= BUSY_PAUSE_SECONDS for before, after in pairwise(times))


REFUSE = """
CREATE FUNCTION bsky.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.did = '{did}' THEN RAISE EXCEPTION 'refused' USING ERRCODE = '{sqlstate}'; END IF;
    IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE {event} ON bsky.actor FOR EACH ROW EXECUTE FUNCTION bsky.refuse();
"""


@pytest.mark.parametrize("handle", ["ann\0.test", "\ud800.test", "refused.test"])
async def test_a_handle_that_cannot_be_stored_holds_nobody_up(tables: Tables, handle: str) -> None:
    names = ("ann", "bob", "cyd")
    tables.apply(*(identity(name) for name in names))
    if handle == "refused.test":
        sql = REFUSE.format(did=did_of("ann"), sqlstate="21000", event="UPDATE OF handle")
        execute(tables.url, sql)
    handles = {did_of(name): f"{name}.test" for name in names} | {did_of("ann"): handle}
    owners = {handle: did for did, handle in handles.items()}

    async def find_document(did: str, _forced: bool) -> DidDocument | None:
        return DidDocument(did, handles[did], None, None)

    async def find_did(handle: str) -> str | None:
        return owners[handle]

    metrics = IndexerMetrics(CollectorRegistry(), ["firehose_live"], [])
    checks = HandleChecks(
        "worker", lambda: Database.connect(tables.url, name="h"), find_document, find_did, metrics
    )
    with closing(checks):
        while await checks.work_once():
            pass
    stored = dict(tables.rows("actor", "did, handle"))
    assert stored == {
        did_of("ann"): None, did_of("bob"): "bob.test", did_of("cyd"): "cyd.test",
    }  # fmt: skip
    waiting = tables.database.query("SELECT did, attempts FROM rsky_pipeline.handle_check")
    assert waiting == [(did_of("ann"), 1)], "it is looked up again, after a pause that grows"


async def test_an_account_that_cannot_be_purged_holds_nobody_up(tables: Tables) -> None:
    net = Network()
    for name in ("ann", "bob"):
        tables.apply(net.post(name), account(name, 20, active=False, status="deleted"))
    execute(tables.url, REFUSE.format(did=did_of("ann"), sqlstate="XX000", event="DELETE"))

    async def find_host(_did: str) -> None:
        return None

    metrics = IndexerMetrics(CollectorRegistry(), ["firehose_live"], [])
    checks = DeletionChecks(
        lambda: Database.connect(tables.url, name="d"), find_host, registry.load(), metrics
    )
    with closing(checks):
        while await checks.work_once():
            pass
    assert tables.rows("actor", "did") == [(did_of("ann"),)]
    waiting = tables.database.query("SELECT did, attempts FROM rsky_pipeline.deletion_check")
    assert waiting == [(did_of("ann"), 1)]
