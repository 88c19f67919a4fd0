"""Writing what was read: batches and their cursor, in order, until the store has them.

A batch that was taken is written or still held. Only two things end that: the store holds another
cursor than the batch follows on, or the worker has to go; in both cases the cursor makes the host
send everything again.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import inf

import trio

from rsky_pipeline.ingester.batch import Batch, Batcher, BatchRule
from rsky_pipeline.ingester.convert import Converted
from rsky_pipeline.ingester.cursor import parse_cursor
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.threads import StoreThread
from rsky_pipeline.streams.append import Appended, CursorMove, append, read_cursor
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable

_log = logging.getLogger(__name__)
_FULL_POLL_SECONDS = (0.05, 1.0)  # first and longest wait for room in a stream
_GIVE_UP_SECONDS = 5.0  # for a store that does not answer while the worker is stopping


class Writer:
    """Appends the frames of one host, on a connection of its own."""

    def __init__(
        self,
        store: Store,
        cursor_key: str,
        high_water_marks: Mapping[str, int],
        rule: BatchRule,
        metrics: IngesterMetrics,
        on_written: Callable[[Batch, Mapping[str, int]], None],
    ) -> None:
        self._store = store
        self._thread = StoreThread()
        self.cursor_key = cursor_key
        self._marks = high_water_marks
        self._metrics = metrics
        self._on_written = on_written  # is told the lengths of the batch's streams
        self._batcher = Batcher(rule)
        self._changed = trio.Event()
        self._hurry = False
        self._closing = False
        self._in_flight: Batch | None = None
        self.stored: int | None = None  # the cursor that the store holds, as far as we know
        self.last_known: int | None = None  # the highest that we ever stored
        self.moved = trio.Event()  # set when the store holds another cursor; see `load_cursor`
        self.is_full = False
        self.given_up = False

    @property
    def events(self) -> int:
        """Events in memory."""
        held = len(self._in_flight.entries) if self._in_flight else 0
        return self._batcher.events + held

    @property
    def bytes(self) -> int:
        """Their size."""
        return self._batcher.bytes + (self._in_flight.size if self._in_flight else 0)

    @property
    def idle(self) -> bool:
        """Whether everything that was put in has been written."""
        return not self._batcher and self._in_flight is None

    def put(self, frames: Iterable[Converted]) -> None:
        """Take frames in the order in which they came; never waits, so watch `events`."""
        if self.moved.is_set():
            return  # they follow on frames that are not written any more
        self._batcher.add(frames, trio.current_time())
        self._wake()

    async def load_cursor(self) -> None:
        """Set `stored` from the store and go on from there. Raises its errors, InvalidCursor."""
        text = await self._thread.call(read_cursor, self._store, self.cursor_key)
        self.stored = parse_cursor(text)
        if self.last_known is None:
            self.last_known = self.stored
        self.moved = trio.Event()

    async def flush(self) -> None:
        """Write everything now and wait until it is written, dropped or given up."""
        self._hurry = True
        self._wake()
        while not self.idle and not self.given_up:
            await self.changed()
        self._hurry = False

    async def changed(self) -> None:
        """Wait until something was put in or written."""
        await self._changed.wait()

    def close(self) -> None:
        """Let `run` end when everything is written; a store that is full ends it at once."""
        self._closing = True
        self._wake()

    async def run(self, hurrying: trio.Event) -> None:
        """Write batches as they become due, until closed."""
        while not (self._closing and self.idle) and not self.given_up:
            if not self._is_due():
                await self._wait_until_due()
                continue
            self._in_flight = self._batcher.take()
            await self._write(self._in_flight, hurrying)
            self._in_flight = None
            self._wake()

    def _is_due(self) -> bool:
        if self._closing or self._hurry:
            return bool(self._batcher)
        return self._batcher.deadline() <= trio.current_time()

    async def _wait_until_due(self) -> None:
        deadline = self._batcher.deadline()
        with trio.move_on_at(deadline) if deadline < inf else trio.CancelScope():
            await self._changed.wait()

    async def _write(self, batch: Batch, hurrying: trio.Event) -> None:
        """Append a batch, however long it takes, or set `moved` or `given_up`."""
        backoff, full_wait = Backoff(base=0.1, cap=5.0), _FULL_POLL_SECONDS[0]
        stopping_since: float | None = None
        while True:
            try:
                result = await self._thread.call(partial(self._append, batch))
            except (StoreUnavailable, StoreRejected) as error:
                backoff, wait = backoff.failed(trio.current_time())
                self._note_failure(error, wait)
            else:
                if result.status != "full":
                    self._finish(batch, result)
                    return
                wait, full_wait = full_wait, min(full_wait * 2, _FULL_POLL_SECONDS[1])
                self._note_full(result)
            if self._closing:
                stopping_since = stopping_since or trio.current_time()
                too_long = trio.current_time() - stopping_since > _GIVE_UP_SECONDS
                if self.is_full or too_long or hurrying.is_set():
                    self._give_up()
                    return
            with trio.move_on_after(wait):
                await hurrying.wait()

    def _append(self, batch: Batch) -> Appended:
        move = None
        if batch.seq is not None and batch.seq != self.stored:
            expected = None if self.stored is None else str(self.stored)
            move = CursorMove(self.cursor_key, expected, str(batch.seq))
        marks = self._marks
        return append(self._store, batch.entries, cursor=move, high_water_marks=marks)

    def _finish(self, batch: Batch, result: Appended) -> None:
        self.is_full = False
        if result.status == "cursor_moved":
            self._metrics.error("cursor_moved")
            _log.error(
                "the stored cursor is not the one that was written last; reading again from it",
                extra={"key": self.cursor_key, "stored": result.stored_cursor,
                       "expected": self.stored},
            )  # fmt: skip
            self._batcher.clear()
            self.moved.set()
            return
        if batch.seq is not None:
            self.stored = self.last_known = batch.seq
        self._on_written(batch, result.lengths)

    def _note_failure(self, error: Exception, wait: float) -> None:
        action = "unavailable" if isinstance(error, StoreUnavailable) else "rejected"
        self._metrics.store_retries.labels(action).inc()
        self._metrics.error(f"store_{action}")
        _log.error("append failed, trying again", extra={"error": str(error), "wait_s": wait})

    def _note_full(self, result: Appended) -> None:
        self._metrics.store_retries.labels("full").inc()
        if not self.is_full:
            where = result.full_stream or "the memory of Redis"
            _log.warning("no room for events, waiting", extra={"full": where})
        self.is_full = True

    def _give_up(self) -> None:
        self.given_up = True
        _log.warning(
            "stopping with unwritten events; the relay sends them again from the cursor",
            extra={"events": self.events, "cursor": self.stored},
        )

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
