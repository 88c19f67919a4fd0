"""From bsync to rows, with both roles: the recorded answers give the recorded rows."""

from collections.abc import Iterator
from functools import partial

import orjson
import pytest
import trio

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.indexer import role, upkeep
from rsky_pipeline.observability.server import process_registry
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.health import Health
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.bsync import BSYNC_LOGS, OPERATION_FIELD
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.names import BSYNC_LIVE, dead_letters
from tests.bsync import Bsync, running_bsync
from tests.integration.indexer.kit import did_of
from tests.integration.indexer.test_bsync import expected_rows, rows_of, untimed
from tests.integration.indexer.worker import indexing
from tests.integration.ingester.test_bsync import reading
from tests.integration.ingester.worker import entries, eventually
from tests.stores import execute


@pytest.fixture
def bsync() -> Iterator[Bsync]:
    with running_bsync() as served:
        yield served


def place(database: Database, log: str) -> int:
    rows = database.query("SELECT place FROM rsky_pipeline.bsync_log WHERE log = %s", [log])
    return int(rows[0][0]) if rows else 0


async def killed_indexer(redis_url: str, database_url: str, consumer: str) -> None:
    """Run an indexer that ends with entries in hand, neither drained nor acknowledged."""
    context = WorkerContext(
        settings=Settings(redis_url=redis_url, database_url=database_url, indexer_batch_size=7),
        role="indexer", instance=1, consumer=consumer, registry=process_registry(),
        ready=lambda: None, activity=Health("indexer", 1).activity, health=lambda _: None,
    )  # fmt: skip
    with Database.connect(database_url, name="test") as database:
        before = [place(database, log) for log in BSYNC_LOGS]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(role.run, context)
            await eventually(lambda: [place(database, log) for log in BSYNC_LOGS] != before)
            nursery.cancel_scope.cancel()


def reached(database: Database, log: str, last: int) -> bool:
    return place(database, log) == last


async def test_recorded_answers_give_the_recorded_rows_with_kills(
    clean_redis: str, schema_database: str, bsync: Bsync
) -> None:
    bsync.load("scans-final")
    async with reading(clean_redis, bsync):
        for turn in range(4):
            await killed_indexer(clean_redis, schema_database, f"killed-{turn}")
        assert entries(clean_redis, BSYNC_LIVE)
        async with indexing(
            clean_redis, schema_database, consumer="last", indexer_batch_size=7,
            claim_idle_seconds=1,
        ):  # fmt: skip
            with Database.connect(schema_database, name="test") as database:
                for log, served in bsync.logs.items():
                    await eventually(partial(reached, database, log, max(served)))
                await eventually(lambda: not entries(clean_redis, BSYNC_LIVE))
                assert untimed(rows_of(database)) == expected_rows("rows-replayed-into-empty")
    assert not entries(clean_redis, dead_letters(BSYNC_LIVE))


async def test_one_bad_operation_is_a_dead_letter(clean_redis: str, schema_database: str) -> None:
    store = connect(clean_redis, name="test")
    bad = {"log": "mute", "reading": 0, "id": 1, "time": "2026-01-01T00:00:00Z",
           "operation": {"actorDid": did_of("ann")}}  # fmt: skip
    good = bad | {"id": 2, "operation": {"actorDid": did_of("ann"), "type": "TYPE_ADD",
                                         "subject": did_of("bob")}}  # fmt: skip
    payloads = [orjson.dumps(each) for each in (bad, good)]
    append(store, [Entry(BSYNC_LIVE, OPERATION_FIELD, payload) for payload in payloads])
    store.close()
    async with indexing(clean_redis, schema_database) as worker:
        await eventually(lambda: not entries(clean_redis, BSYNC_LIVE))
        await eventually(
            lambda: worker.metric(
                "indexer_bsync_operations_total", log="mute", outcome="applied"
            ) == 1
        )  # fmt: skip
        assert worker.metric("indexer_refused_total", reason="unknown_type") == 1
    (letter,) = entries(clean_redis, dead_letters(BSYNC_LIVE))
    assert letter[b"reason"] == b"unknown_type"
    with Database.connect(schema_database, name="test") as database:
        assert len(rows_of(database)["mute"]) == 1


async def test_operations_wait_for_a_table_that_is_missing(
    clean_redis: str, schema_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(upkeep, "CLEAN_EVERY", 1)
    execute(schema_database, "ALTER TABLE bsky.mute RENAME TO elsewhere")
    async with indexing(
        clean_redis, schema_database, bsync_url="http://localhost:1", bsync_key="a-key"
    ) as worker:
        await worker.ready.wait()
        # Before anything is written.
        await eventually(lambda: worker.metric("rsky_finding", finding="schema", subject="") == 2)
        store = connect(clean_redis, name="test")
        mute = {"log": "mute", "reading": 0, "id": 2, "time": "2026-01-01T00:00:00Z",
                "operation": {"actorDid": did_of("ann"), "type": "TYPE_ADD",
                              "subject": did_of("bob")}}  # fmt: skip
        append(store, [Entry(BSYNC_LIVE, OPERATION_FIELD, orjson.dumps(mute))])
        store.close()
        await eventually(lambda: worker.metric("indexer_database_failures_total") > 0)
        execute(schema_database, "ALTER TABLE bsky.elsewhere RENAME TO mute")
        await eventually(lambda: not entries(clean_redis, BSYNC_LIVE))
    assert not entries(clean_redis, dead_letters(BSYNC_LIVE))
    with Database.connect(schema_database, name="test") as database:
        assert len(rows_of(database)["mute"]) == 1
