"""From bsync to rows, with both roles: the recorded answers give the recorded rows."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import orjson
import psycopg
import pytest

from rsky_pipeline.database.connection import Database
from rsky_pipeline.demo.processes import clean_environment
from rsky_pipeline.indexer import upkeep
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.bsync import OPERATION_FIELD
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


def started_indexer(folder: Path, redis_url: str, database_url: str) -> "subprocess.Popen[bytes]":
    command = [
        *(sys.executable, "-P", "-m", "rsky_pipeline", "worker", "indexer"),
        *(f"--redis-url={redis_url}", f"--database-url={database_url}", f"--data-dir={folder}"),
        *("--set", "indexer_batch_size=7", "--set", "indexer_metrics_port=0"),
    ]
    with (folder / "indexer.log").open("ab") as log:
        return subprocess.Popen(command, env=clean_environment(), stdout=log, stderr=log)


async def killed_indexer(folder: Path, redis_url: str, database_url: str) -> None:
    """Run an indexer, and kill it amid a transaction, with entries in hand."""
    waits = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'bsky.private_data'::regclass"
    with psycopg.connect(database_url) as holder, psycopg.connect(database_url) as watcher:
        watcher.autocommit = True
        holder.execute("LOCK TABLE bsky.private_data IN ACCESS EXCLUSIVE MODE")
        process = started_indexer(folder, redis_url, database_url)
        try:
            await eventually(lambda: watcher.execute(waits).fetchall() != [])
        finally:
            process.kill()
            process.wait()


def reached(database: Database, log: str, last: int) -> bool:
    return place(database, log) == last


async def test_recorded_answers_give_the_recorded_rows_with_kills(
    clean_redis: str, schema_database: str, bsync: Bsync, tmp_path: Path
) -> None:
    bsync.load("scans-final")
    async with reading(clean_redis, bsync):
        for _ in range(2):
            await killed_indexer(tmp_path, clean_redis, schema_database)
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
