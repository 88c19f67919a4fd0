"""Appends to `firehose_backfill`, held back while the stream is full."""

from collections.abc import Sequence
from functools import partial

import trio

from rsky_pipeline.backfiller.coalescer import Coalescer
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL

FULL_PAUSE_SECONDS = 0.25
MAX_BATCHES = 4  # batches of different repos that share one append


class Output:
    """The one connection that all repos in flight append through.

    A batch whose reply was lost is appended again. Its events may then be in the stream twice,
    which is harmless because the indexer applies them idempotently.
    """

    def __init__(self, link: Link[Store], high_water_mark: int, metrics: BackfillerMetrics) -> None:
        self._link = link
        self._marks = {FIREHOSE_BACKFILL: high_water_mark}
        self._metrics = metrics
        self._batches = Coalescer(self._append, limit=MAX_BATCHES)

    async def append(self, entries: list[Entry]) -> None:
        """Append a batch atomically; waits for stream capacity and for Redis without a limit."""
        if entries:
            await self._batches.call(entries)

    async def _append(self, batches: Sequence[list[Entry]]) -> Sequence[None]:
        entries = [entry for batch in batches for entry in batch]
        write = partial(append, entries=entries, high_water_marks=self._marks)
        while (await self._link.retry(write)).status != "appended":
            self._metrics.backpressure.inc()
            await trio.sleep(FULL_PAUSE_SECONDS)
        return [None] * len(batches)
