"""Taking repos from the streams while the store fails."""

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from rsky_pipeline.backfiller.jobs import Jobs
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.errors import StoreUnavailable
from rsky_pipeline.streams.names import REPO_BACKFILL, REPO_BACKFILL_HIGH, REPO_STREAMS
from rsky_pipeline.streams.repo_job import REPO_FIELD, RepoJob, encode_repo_job


class Failing:
    """A store of which one reply, or one request, is lost."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.fails: tuple[str, str, bool] | None = None  # command, stream, after it was carried out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def call(self, *command: Any) -> Any:
        """Pass a command on, unless it is the one that fails."""
        if self.fails is None or self.fails[0] != command[0] or self.fails[1] not in command:
            return self._store.call(*command)
        if self.fails[2]:
            self._store.call(*command)
        self.fails = None
        raise StoreUnavailable("the connection was lost")


@pytest.fixture
def stores(clean_redis: str) -> Iterator[tuple[Failing, Store]]:
    opened = [connect(clean_redis, name=name) for name in ("read", "settle")]
    yield Failing(opened[0]), opened[1]
    for store in opened:
        store.close()


def queue(store: Store, stream: str, *dids: str) -> None:
    append(
        store,
        [
            Entry(stream, REPO_FIELD, encode_repo_job(RepoJob(did, "relay", "", None, True)))
            for did in dids
        ],
    )


def taken(jobs: Jobs) -> list[str]:
    return [job.repo.did for job in jobs.taken()]


@pytest.mark.parametrize("answered", [False, True])
async def test_what_was_taken_before_a_failure_is_neither_lost_nor_taken_twice(
    stores: tuple[Failing, Store], answered: bool
) -> None:
    reading, settling = stores
    metrics = BackfillerMetrics(CollectorRegistry())
    jobs = Jobs(reading, settling, Settings(), "test-1", metrics)  # type: ignore[arg-type]
    assert [job async for job in jobs.recover()] == []
    queue(settling, REPO_BACKFILL_HIGH, "did:plc:a", "did:plc:b")
    queue(settling, REPO_BACKFILL, "did:plc:c", "did:plc:d")
    reading.fails = ("XREADGROUP", REPO_BACKFILL, answered)
    with pytest.raises(StoreUnavailable):
        await jobs.read(32)
    found = taken(jobs)
    assert found == ["did:plc:a", "did:plc:b"]
    await jobs.find_lost()
    await jobs.read(32)
    found += taken(jobs)
    assert sorted(found) == ["did:plc:a", "did:plc:b", "did:plc:c", "did:plc:d"]
    await jobs.find_lost()
    assert taken(jobs) == []


async def test_what_was_claimed_before_a_failure_is_not_lost(stores: tuple[Failing, Store]) -> None:
    reading, settling = stores
    metrics = BackfillerMetrics(CollectorRegistry())
    settings = Settings(claim_idle_seconds=1)
    gone = Jobs(settling, settling, settings, "gone-1", metrics)
    assert [job async for job in gone.recover()] == []
    queue(settling, REPO_BACKFILL_HIGH, "did:plc:a")
    await gone.read(32)
    assert taken(gone) == ["did:plc:a"]
    for stream in REPO_STREAMS:  # as if it were idle for long
        for entry_id, *_ in settling.call("XPENDING", stream, Settings().backfiller_group,
                                          "-", "+", 10):  # fmt: skip
            settling.call("XCLAIM", stream, Settings().backfiller_group, "gone-1", 0, entry_id,
                          "IDLE", 60_000, "JUSTID")  # fmt: skip
    jobs = Jobs(reading, settling, settings, "test-1", metrics)  # type: ignore[arg-type]
    reading.fails = ("XPENDING", REPO_BACKFILL, False)
    with pytest.raises(StoreUnavailable):
        await jobs.claim()
    assert taken(jobs) == ["did:plc:a"]
