"""Taking repos from the streams while Redis fails, and what is left of other workers."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry

from rsky_pipeline.backfiller.jobs import JobQueue
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.consumer import Delivery
from rsky_pipeline.streams.errors import StoreUnavailableError
from rsky_pipeline.streams.names import (
    REPO_BACKFILL,
    REPO_BACKFILL_HIGH,
    REPO_STREAMS,
    dead_letters,
)
from rsky_pipeline.streams.repo_job import REPO_FIELD, RepoJob, decode_repo_job, encode_repo_job

GROUP = Settings().backfiller_group


class Failing:
    """Connections of which one reply, or one request, is lost."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.fails: tuple[str, str, bool] | None = None  # command, stream, after it was carried out
        self.opened = 0

    def open(self) -> Any:
        """Return a connection of which a call may fail."""
        self.opened += 1
        return _FailingStore(connect(self._url, name="read"), self)


class _FailingStore:
    def __init__(self, store: Store, plan: Failing) -> None:
        self._store = store
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def call(self, *command: Any) -> Any:
        fails = self._plan.fails
        if fails is None or fails[0] != command[0] or fails[1] not in command:
            return self._store.call(*command)
        if fails[2]:
            self._store.call(*command)
        self._plan.fails = None
        raise StoreUnavailableError("the connection was lost")


@pytest.fixture
def store(clean_redis: str) -> Iterator[Store]:
    opened = connect(clean_redis, name="test")
    yield opened
    opened.close()


@pytest.fixture
def make(clean_redis: str) -> Iterator[Callable[..., JobQueue]]:
    links: list[Link[Store]] = []

    def made(
        name: str, plan: Failing | None = None, settings: Settings | None = None,
        registry: CollectorRegistry | None = None,
    ) -> JobQueue:  # fmt: skip
        def open_store() -> Store:
            return connect(clean_redis, name=name)

        reading = Link(plan.open if plan else open_store, purpose="read")
        ending = Link(open_store, purpose="settle")
        links.extend((reading, ending))
        metrics = BackfillerMetrics(registry or CollectorRegistry())
        return JobQueue(reading, ending, settings or Settings(), name, metrics)

    yield made
    for link in links:
        link.close()


def queue(store: Store, stream: str, *dids: str) -> None:
    jobs = (encode_repo_job(RepoJob(did, "relay", "", None, True)) for did in dids)
    append(store, [Entry(stream, REPO_FIELD, job) for job in jobs])


def named(deliveries: list[Delivery] | None) -> list[str]:
    return [
        decode_repo_job(item.fields[REPO_FIELD]).did for item in deliveries or () if item.fields
    ]


async def take_all(jobs: JobQueue) -> list[str]:
    """Take until there is nothing more, whatever fails meanwhile."""
    found: list[str] = []
    for _ in range(20):
        found += named(await jobs.take(32))
    return found


@pytest.mark.parametrize("answered", [False, True])
async def test_what_was_taken_before_a_failure_is_neither_lost_nor_taken_twice(
    clean_redis: str, store: Store, make: Callable[..., JobQueue], answered: bool
) -> None:
    plan = Failing(clean_redis)
    jobs = make("test-1", plan)
    assert await take_all(jobs) == []
    assert jobs.taken_up
    queue(store, REPO_BACKFILL_HIGH, "did:plc:a", "did:plc:b")
    queue(store, REPO_BACKFILL, "did:plc:c", "did:plc:d")
    plan.fails = ("XREADGROUP", REPO_BACKFILL, answered)
    found = await take_all(jobs)
    assert plan.opened == 2
    assert sorted(found) == ["did:plc:a", "did:plc:b", "did:plc:c", "did:plc:d"]
    assert jobs.held == 4


async def test_entries_of_a_worker_that_is_gone_are_taken_over(
    clean_redis: str, store: Store, make: Callable[..., JobQueue]
) -> None:
    settings = Settings(claim_idle_seconds=1)
    gone = make("gone-1", settings=settings)
    queue(store, REPO_BACKFILL_HIGH, "did:plc:a")
    assert await take_all(gone) == ["did:plc:a"]
    for stream in REPO_STREAMS:  # as if it were idle for long
        for entry_id, *_ in store.call("XPENDING", stream, GROUP, "-", "+", 10):
            store.call("XCLAIM", stream, GROUP, "gone-1", 0, entry_id, "IDLE", 60_000, "JUSTID")
    plan = Failing(clean_redis)
    jobs = make("test-1", plan, settings)
    plan.fails = ("XPENDING", REPO_BACKFILL, False)
    assert await take_all(jobs) == ["did:plc:a"]


async def test_an_ending_that_redis_refuses_holds_up_no_other(
    store: Store, make: Callable[..., JobQueue]
) -> None:
    queue(store, REPO_BACKFILL_HIGH, "did:plc:a", "did:plc:b", "did:plc:c")
    store.call("SET", dead_letters(REPO_BACKFILL_HIGH), "not a stream")
    registry = CollectorRegistry()
    jobs = make("test-1", registry=registry)
    taken: list[Delivery] = []
    while len(taken) < 3:
        taken += await jobs.take(32) or ()
    first, *others = taken
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(jobs.dead_letter, first, "bad", "", 1)
            nursery.start_soon(jobs.dead_letter, first, "bad", "", 1)
            for delivery in others:
                nursery.start_soon(jobs.finish, delivery)
        await jobs.dead_letter(first, "bad", "", 1)
    assert jobs.held == 0
    rows = store.call("XPENDING", REPO_BACKFILL_HIGH, GROUP, "-", "+", 10)
    assert [row[0].decode() for row in rows] == [first.id]
    assert registry.get_sample_value("backfiller_repos_dead_lettered_total") == 0


async def test_names_of_consumers_that_are_gone_are_forgotten(
    store: Store, make: Callable[..., JobQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsky_pipeline.streams.consumer.FORGOTTEN_CONSUMER_MS", -1)
    await take_all(make("gone-1"))
    jobs = make("test-1")
    await take_all(jobs)
    await jobs.maintain()
    for stream in REPO_STREAMS:
        names = {row[1].decode() for row in store.call("XINFO", "CONSUMERS", stream, GROUP)}
        assert names <= {"test-1"}
