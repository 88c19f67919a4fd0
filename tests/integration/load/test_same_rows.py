"""The rows of a load are those that the backfiller and the indexer make of the same repos."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from rsky_pipeline.backfiller import role as backfiller
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.observability.server import process_registry
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.health import Health
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, REPO_BACKFILL
from rsky_pipeline.streams.repo_job import REPO_FIELD, RepoJob, encode_repo_job
from rsky_pipeline.streams.waiting import count_waiting
from tests.data import test_data
from tests.integration.backfiller.hosts import FakeHosts
from tests.integration.indexer.worker import eventually, indexing
from tests.integration.load.kit import (
    differences,
    files_of,
    host,
    load,
    rows,
    save,
    settings,
    world,
)
from tests.stores import fresh_database


@asynccontextmanager
async def backfilling(configured: Settings) -> AsyncIterator[None]:
    context = WorkerContext(
        configured, "backfiller", 1, "test-backfiller-1", process_registry(),
        lambda: None, Health("backfiller", 1).activity, lambda _: None,
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backfiller.run, context)
        yield
        context.stopping.set()


async def by_streams(configured: Settings, hosts: FakeHosts) -> None:
    """Have every hosted repo fetched and indexed."""
    store = connect(configured.redis_url or "", name="test")
    jobs = [RepoJob(did, hosts.url, "", None, True) for did in hosts.repos]
    append(store, [Entry(REPO_BACKFILL, REPO_FIELD, encode_repo_job(job)) for job in jobs])
    assert configured.redis_url is not None
    assert configured.database_url is not None

    def is_done() -> bool:
        reports = [inspect(store, name) for name in (REPO_BACKFILL, FIREHOSE_BACKFILL)]
        return not any(report.length for report in reports) and not count_waiting(store)

    async with backfilling(configured), indexing(configured.redis_url, configured.database_url):
        await eventually(lambda: inspect(store, FIREHOSE_BACKFILL).added, 60)
        await eventually(is_done, 60)
    store.close()


@pytest.mark.slow
async def test_simulated_repos_give_the_same_rows(
    clean_redis: str, schema_database: str, database_server: str, schema_template: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    made = world()
    save(made, tmp_path)
    with FakeHosts() as hosts, fresh_database(database_server, schema_template) as other:
        host(made, hosts)
        await by_streams(settings(clean_redis, schema_database, hosts), hosts)
        expected = rows(schema_database)
        await trio.to_thread.run_sync(load, other, files_of(tmp_path, hosts.repos))
        assert differences(rows(other), expected) == {}
    assert len(expected["bsky.record"]) > 500
    assert len(expected["bsky.like"]) > 50
    assert expected["bsky.notification"] == []


@pytest.mark.slow
async def test_recorded_repos_give_the_same_rows(
    clean_redis: str, schema_database: str, database_server: str, schema_template: str
) -> None:
    folder = test_data("recorded/cars")
    documents = json.loads(test_data("recorded/dids.json").read_text())
    with FakeHosts() as hosts, fresh_database(database_server, schema_template) as other:
        for item in json.loads((folder / "index.json").read_text()):
            if "file" in item:
                car = (folder / item["file"]).read_bytes()
                hosts.add(item["did"], documents[item["did"]], car)
        await by_streams(settings(clean_redis, schema_database, hosts), hosts)
        expected = rows(schema_database)
        outcomes = await trio.to_thread.run_sync(load, other, files_of(folder, hosts.repos))
        assert {outcome.status for outcome in outcomes} == {"loaded"}
        assert differences(rows(other), expected) == {}
    assert len(expected["bsky.actor_sync"]) == len(outcomes) == 40
    assert expected["bsky.notification"] == []
