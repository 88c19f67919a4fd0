"""The tasks beside the workers: holding entries, recounting, forgetting superseded rejections."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.health.self_check import SelfCheck
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core import rejected as rejections
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.entries import read_entry
from rsky_pipeline.indexer.core.rejected import forget_superseded
from rsky_pipeline.indexer.upkeep import StreamUpkeep, TableUpkeep
from rsky_pipeline.observability.indexer import IndexerMetrics
from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.operations.recount import Scope, recount
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.consumer import Consumer
from rsky_pipeline.streams.names import FIREHOSE_LIVE
from tests.consumers import GroupReader
from tests.integration.indexer.kit import NOW, Network, Put, Tables, did_of, read, recounted, repo
from tests.integration.indexer.story import Story
from tests.integration.indexer.test_order import in_parallel, work
from tests.integration.indexer.worker import GROUP, feed


@pytest.mark.parametrize(("is_waiting", "deliveries"), [(False, 4), (True, 1)])
def test_entries_in_work_are_held_and_forgiven_while_a_store_is_away(
    clean_redis: str, is_waiting: bool, deliveries: int
) -> None:
    hour, exported = 3_600_000, CollectorRegistry()
    (entry_id,) = feed(clean_redis, Network().post("ann"))
    with closing(connect(clean_redis, name="test")) as store:
        for _ in range(4):  # lives of the worker
            own = Consumer(FIREHOSE_LIVE, GROUP, "c", reclaim_idle_ms=hour)
            own.take(store, 1)
        store.call("XCLAIM", FIREHOSE_LIVE, GROUP, "c", 0, entry_id, "IDLE", hour, "JUSTID")
        gauges = StreamMetrics(exported, "indexer", {FIREHOSE_LIVE: (GROUP,)})
        check = SelfCheck(exported, "indexer", Settings(), [FIREHOSE_LIVE])
        metrics = IndexerMetrics(exported, [FIREHOSE_LIVE], [])
        upkeep = StreamUpkeep(lambda: store, [own], gauges, metrics, check, lambda: is_waiting)
        upkeep.look(store)
        (row,) = GroupReader(store, FIREHOSE_LIVE, GROUP, "c").pending("-", 9)
    assert row.idle_ms < hour
    assert row.deliveries == deliveries


def test_recounting_beside_workers_leaves_counts_exact(tables: Tables) -> None:
    """Counts are wrong at the start; every pass corrects what stands while batches add to it."""
    chance = random.Random(11)
    events = Story(chance).tell(400)
    first, rest = events[:100], events[100:]
    work(tables.url, [first])
    tables.database.execute('UPDATE post_agg SET "likeCount" = "likeCount" + 7, "quoteCount" = 3')
    tables.database.execute('UPDATE profile_agg SET "postsCount" = 0, "followersCount" = 99')
    working = threading.Event()
    passes: list[int] = []

    def write(part: int) -> None:
        work(tables.url, [[event] for event in rest[part::2]])

    def write_all() -> None:
        try:
            in_parallel([partial(write, part) for part in range(2)])
        finally:
            working.set()

    def count() -> None:
        with Database.connect(tables.url, name="recount") as database:
            while not working.is_set() or not passes:
                chunks = recount(database, Scope(), repair=True)
                passes.append(sum(len(chunk.drifts) for chunk in chunks))

    in_parallel([write_all, count])
    assert len(passes) > 2, "recounting went on while the workers wrote"
    assert passes[0] > 0, "the first pass repairs what was wrong"
    assert passes[1:] == [0] * len(passes[1:]), "afterwards nothing ever seems wrong"
    recounted(tables)
    with Database.connect(tables.url, name="recount") as database:
        assert not any(chunk.drifts for chunk in recount(database, Scope(), repair=False))


def refuse(tables: Tables, *puts: Put) -> None:
    readings = [read_entry({b"event": put.payload}, registry.load()) for put in puts]
    assert all(reading.refused for reading in readings)
    apply_batch(tables.database, readings, registry.load())


def bad(net: Network, who: str, **fields: Any) -> Put:
    return net.put(who, "app.bsky.feed.post", {"text": 1}, **fields)


def kept(tables: Tables) -> set[str]:
    found = tables.database.query("SELECT uri FROM rsky_pipeline.rejected_record")
    return {row[0] for row in found}


def test_rejections_that_were_overtaken_are_forgotten(tables: Tables, net: Network) -> None:
    standing, edited, deleted = (bad(net, "ann") for _ in range(3))
    whole = bad(net, "bob")
    good = net.post("cyd")
    worse = net.update(good, {"text": 1})
    refuse(tables, standing, edited, deleted, whole)
    tables.apply(good)
    refuse(tables, worse)
    tables.apply(net.update(edited, {"text": "better"}), net.delete(deleted))
    tables.apply(repo("bob", 50, complete=True))
    metrics = IndexerMetrics(CollectorRegistry(), ["firehose_live"], [])
    upkeep = TableUpkeep(lambda: Database.connect(tables.url, name="upkeep"), metrics)
    for step in upkeep.steps:
        while step(tables.database):
            pass
    assert kept(tables) == {standing.uri, worse.uri}, "an older version does not make it good"


def test_rejections_are_looked_through_page_by_page(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejections, "PAGE_REJECTIONS", 2)
    net = Network()
    puts = [bad(net, "ann", rkey=f"r{number}") for number in range(5)]
    refuse(tables, *puts)
    tables.apply(*(net.update(put, {"text": "good"}) for put in (puts[0], puts[3], puts[4])))
    after = forget_superseded(tables.database)
    assert (after, kept(tables)) == (puts[1].uri, {put.uri for put in puts[1:]})
    after = forget_superseded(tables.database, after)
    assert (after, kept(tables)) == (puts[3].uri, {put.uri for put in (puts[1], puts[2], puts[4])})
    assert forget_superseded(tables.database, after) == "", "the end: begin again"
    assert kept(tables) == {puts[1].uri, puts[2].uri}


def test_a_row_that_a_stranger_writes_meanwhile_is_updated(tables: Tables, net: Network) -> None:
    """The official indexer does not know our locks; its transaction ends when ours has begun."""
    post = net.post("alice", "new")
    stranger = Database.connect(tables.url, name="stranger")
    with stranger, stranger.transaction() as tx:
        tx.execute(
            'INSERT INTO record (uri, cid, did, json, "indexedAt") VALUES (%s, %s, %s, %s, %s)',
            (post.uri, "bafyold", did_of("alice"), "{}", NOW),
        )
        with ThreadPoolExecutor(1) as pool:
            applied = pool.submit(tables.apply, post)
            _wait_for_blocked(tx)
            tx.execute("COMMIT")
            assert applied.result(30).updated == 1
    assert tables.rows("record", "uri, cid") == [(post.uri, post.cid)]
    assert tables.rows("post", "text") == [("new",)]


def test_a_row_of_a_stranger_does_not_stop_a_load(tables: Tables) -> None:
    """The account seems to have nothing, but a like stands that has no record."""
    history = Network(history=True)
    post = history.post("bob")
    likes = [history.like("alice", post), history.like("alice", history.post("carol"))]
    tables.database.execute(
        'INSERT INTO "like" (uri, cid, creator, "indexedAt", subject, "subjectCid", "createdAt") '
        "VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (likes[0].uri, "bafyold", did_of("alice"), NOW, post.uri, "bafyold", NOW),
    )
    apply_batch(tables.database, read(likes), registry.load(), bulk=True)
    assert tables.rows("record", "uri") == sorted((like.uri,) for like in likes)
    assert tables.rows("like", "uri, cid") == sorted((like.uri, like.cid) for like in likes)


def _wait_for_blocked(tx: Transaction) -> None:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
    deadline = time.monotonic() + 30
    while not tx.query(waiting):
        assert time.monotonic() < deadline, "nobody waits for the stranger"
        time.sleep(0.01)
