"""Appending to `firehose_backfill`, as fast as its consumers allow."""

import logging
from collections.abc import Sequence
from functools import partial

import trio

from rsky_pipeline.backfiller.gather import Gather
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.logging import Throttled
from rsky_pipeline.runtime.threads import StoreThread
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL

log = logging.getLogger(__name__)
FULL_PAUSE_SECONDS = 0.25
TOGETHER = 4  # batches of several repos that are appended at once


class Output:
    """One connection that all repos in flight append through, a batch at a time.

    A batch whose reply was lost is appended again: its events may stand twice in the stream,
    which changes nothing, since applying them is idempotent.
    """

    def __init__(self, store: Store, high_water_mark: int, metrics: BackfillerMetrics) -> None:
        self._store = store
        self._thread = StoreThread()
        self._marks = {FIREHOSE_BACKFILL: high_water_mark}
        self._metrics = metrics
        self._quiet = Throttled()
        self._together = Gather(self._append, most=TOGETHER)

    async def append(self, entries: list[Entry]) -> None:
        """Append a batch, all or none; waits for room and for the store, and never gives up."""
        if entries:
            await self._together.call(entries)

    async def _append(self, batches: Sequence[list[Entry]]) -> Sequence[None]:
        entries = [entry for batch in batches for entry in batch]
        backoff = Backoff(base=0.2, cap=5.0)
        write = partial(append, self._store, entries, high_water_marks=self._marks)
        while True:
            try:
                result = await self._thread.call(write)
            except (StoreUnavailable, StoreRejected) as error:
                self._metrics.store_errors.inc()
                backoff, pause = backoff.failed(trio.current_time())
                if self._quiet.allow("write") is not None:
                    log.warning("the output stream cannot be written", extra={"error": str(error)})
                await trio.sleep(pause)
                continue
            if result.status == "appended":
                return [None] * len(batches)
            self._metrics.backpressure.inc()
            await trio.sleep(FULL_PAUSE_SECONDS)
