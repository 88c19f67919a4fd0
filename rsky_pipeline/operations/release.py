"""Releases the streams to the original (Rust) services, so that they can continue from them.

The original services do not read our high and low priority streams or postponed jobs, and skip
entries pending with another consumer (or acknowledge them unprocessed). All of these are moved to
the end of the stream that they read. Dead letters, cursors and our own keys stay; the original
services ignore them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.streams.connection import Store, text_of
from rsky_pipeline.streams.limits import BATCH_ENTRIES, PAGE_ENTRIES
from rsky_pipeline.streams.names import (
    FIREHOSE_BACKFILL,
    FIREHOSE_LIVE,
    LABEL_LIVE,
    REPO_BACKFILL,
    REPO_BACKFILL_HIGH,
    REPO_BACKFILL_LOW,
)
from rsky_pipeline.streams.scan import pages
from rsky_pipeline.streams.waiting import all_waiting, count_waiting, hurry_waiting, wake

_REPO_STREAMS = (REPO_BACKFILL, REPO_BACKFILL_HIGH, REPO_BACKFILL_LOW)


@dataclass(frozen=True, slots=True)
class ReleasedEntries:
    """Entries that went to the end of `target`; `why` is waiting, unknown_stream or pending."""

    source: str
    target: str
    why: str
    count: int


def release(
    store: Store,
    settings: Settings,
    *,
    dry_run: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> list[ReleasedEntries]:
    """Move entries that the original services would not find; the pipeline should be stopped.

    Interrupted or repeated it moves the rest; beside running workers it only gives them work
    twice. Raises StoreUnavailableError and StoreRejectedError.
    """
    moved = [_waiting(store, dry_run)]
    for stream in (REPO_BACKFILL_HIGH, REPO_BACKFILL_LOW):
        on_step(stream)
        moved.append(_whole_stream(store, stream, dry_run))
    groups = {REPO_BACKFILL: settings.backfiller_group}
    groups |= dict.fromkeys((FIREHOSE_LIVE, FIREHOSE_BACKFILL, LABEL_LIVE), settings.indexer_group)
    for stream, group in groups.items():
        on_step(stream)
        moved.append(_pending(store, stream, group, dry_run))
    return [item for item in moved if item.count]


def _waiting(store: Store, dry_run: bool) -> ReleasedEntries:
    count = count_waiting(store)
    if count and not dry_run:
        part = []
        for entry in all_waiting(store):
            part.append(entry)
            if len(part) == BATCH_ENTRIES:
                hurry_waiting(store, part)
                part = []
        hurry_waiting(store, part)
        count = wake(store, _REPO_STREAMS)
    return ReleasedEntries("rsky_pipeline:repos_waiting", REPO_BACKFILL, "waiting", count)


def _whole_stream(store: Store, stream: str, dry_run: bool) -> ReleasedEntries:
    if dry_run:
        return ReleasedEntries(
            stream, REPO_BACKFILL, "unknown_stream", int(store.call("XLEN", stream))
        )
    count = 0
    for page in pages(store, stream):
        count += store.script("requeue", [stream, REPO_BACKFILL], [entry.id for entry in page])
    return ReleasedEntries(stream, REPO_BACKFILL, "unknown_stream", count)


def _pending(store: Store, stream: str, group: str, dry_run: bool) -> ReleasedEntries:
    count = 0
    for ids in _pages_of_pending(store, stream, group):
        count += len(ids) if dry_run else store.script("requeue", [stream, stream], ids)
    return ReleasedEntries(stream, stream, "pending", count)


def _pages_of_pending(store: Store, stream: str, group: str) -> Iterator[list[bytes]]:
    if not store.call("EXISTS", stream):
        return
    groups = {text_of(row[1]) for row in store.call("XINFO", "GROUPS", stream)}
    start = b"-"
    while group in groups:
        rows = store.call("XPENDING", stream, group, start, "+", PAGE_ENTRIES)
        if not rows:
            return
        yield [row[0] for row in rows]
        start = b"(" + rows[-1][0]
