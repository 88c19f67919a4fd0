"""What an indexer makes of the batches that it has applied."""

import time
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry

from rsky_pipeline.atproto.datetimes import format_utc
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.indexer.core.batch import BatchItem, BatchOutcome, EntryBatch
from rsky_pipeline.indexer.core.entries import Reading
from rsky_pipeline.indexer.role import CATCHING_UP_SECONDS, Indexer
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.health import Health
from rsky_pipeline.streams.consumer import Delivery
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, FIREHOSE_LIVE

LIKE = "app.bsky.feed.like"


@pytest.fixture
def indexer() -> Indexer:
    settings = Settings(redis_url="redis://127.0.0.1:1", database_url="postgresql://127.0.0.1:1")
    return Indexer(
        WorkerContext(
            settings, "indexer", 1, "here-indexer-1", CollectorRegistry(),
            lambda: None, Health("indexer", 1).activity, lambda _: None,
        )
    )  # fmt: skip


def batch(stream: str, age: float, *records: tuple[str, str]) -> EntryBatch:
    at = format_utc(datetime.fromtimestamp(time.time() - age, UTC))
    readings = [Reading(kind, "did:plc:a", at, collection) for kind, collection in records]
    entries = [Delivery(stream, f"{int(time.time() * 1_000)}-0", {}) for _ in records]
    return EntryBatch(stream, [BatchItem(*pair) for pair in zip(entries, readings, strict=True)])


def test_whoever_applies_old_live_events_has_others_wait(indexer: Indexer) -> None:
    report, old = indexer._report, CATCHING_UP_SECONDS * 2
    assert not indexer.is_behind()
    report.note(batch(FIREHOSE_BACKFILL, old, ("create", LIKE)), BatchOutcome())
    assert not indexer.is_behind(), "history is always old"
    report.note(batch(FIREHOSE_LIVE, old, ("create", LIKE)), BatchOutcome())
    assert indexer.is_behind()
    report.note(batch(FIREHOSE_LIVE, 1, ("create", LIKE)), BatchOutcome())
    assert not indexer.is_behind()
    report.note(batch(FIREHOSE_LIVE, old, ("create", LIKE)), BatchOutcome())
    report.caught_up()
    assert not indexer.is_behind(), "a stream in which nothing waits has been read"


def test_the_events_of_a_batch_are_counted(indexer: Indexer) -> None:
    records = [("create", LIKE)] * 3 + [("delete", LIKE), ("create", ""), ("repo", "")]
    indexer._report.note(batch(FIREHOSE_LIVE, 0, *records), BatchOutcome())
    value = indexer.metrics.by_collection[LIKE]._value.get
    assert value() == 3
    assert indexer.metrics.ignored._value.get() == 1
    assert indexer.metrics.events._value.get() == 5
