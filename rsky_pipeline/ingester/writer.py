"""Writing what was read: batches with their states and cursors, in order, until the store has them.

All relays share one writer, so that their events have one order: a cursor that passes a repeat is
never stored before what it repeats. A batch that was taken is written or still held. Only two
things end that: the store holds another cursor than the batch follows on, or the worker has to go;
in both cases the cursors make the hosts send everything again.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Protocol

import orjson
import trio

from rsky_pipeline.ingester.batch import Batch, Batcher, BatchRule, Share
from rsky_pipeline.ingester.convert import Converted
from rsky_pipeline.ingester.cursor import Position, parse_cursor, parse_position
from rsky_pipeline.ingester.repo_state import RepoState, state_key
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.logging import Throttled
from rsky_pipeline.runtime.threads import StoreThread
from rsky_pipeline.streams.append import Appended, CursorMove, append, read_cursor
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.names import CURSOR_POSITIONS

_log = logging.getLogger(__name__)
Noted = bytes | None
_FULL_POLL_SECONDS = (0.05, 0.25)  # first and longest wait for room in a stream
LOOK_SECONDS = 3.0  # between looks at the cursors while there is nothing to write
_GIVE_UP_SECONDS = 5.0  # for a store that does not answer while the worker is stopping


class Listener(Protocol):
    """Is told what became of batches."""

    def written(self, batch: "Batch[Lane]", lengths: Mapping[str, int]) -> None:
        """Take note of a batch and the lengths of its streams."""

    def dropped(self) -> None:
        """Take note that everything unwritten was dropped, to be read again from the cursors."""


class Lane:
    """What one host's frames need of a writer: a cursor of their own."""

    def __init__(self, writer: "Writer", cursor_key: str) -> None:
        self.writer = writer
        self.cursor_key = cursor_key
        self.stored: int | None = None  # the cursor that the store holds, as far as we know
        self.last_known: int | None = None  # the highest that we ever stored
        self.position: Position | None = None  # what was noted with the stored cursor
        self.moved = trio.Event()  # set when the store holds another cursor; see `load_cursor`
        self._loaded = False

    def put(self, frames: Iterable[Converted]) -> None:
        """Take frames in the order in which they came; never waits, so watch `writer.events`."""
        if not self.closed:  # else they follow on frames that are not written any more
            self.writer.add(self, frames)

    @property
    def closed(self) -> bool:
        """Whether nothing is taken any more until the cursor has been loaded again."""
        return self.moved.is_set()

    async def load_cursor(self) -> None:
        """Set `stored` from the store and go on from there. Raises its errors, InvalidCursor."""
        text, noted = await self.writer.read(self.cursor_key)
        self.stored = parse_cursor(text)
        self.position = parse_position(noted)
        if self.stored is None and self.position is not None and self.position.reset:
            self.last_known = None  # an operator wants the initial position, not the last one
        elif self.last_known is None:
            self.last_known = self.stored
        self.moved = trio.Event()
        self._loaded = True

    def move(self, share: Share | None) -> CursorMove | None:
        """Return how a batch moves the cursor, or that it must stay; None while it is not known."""
        if not self._loaded or self.moved.is_set():
            return None
        expected = None if self.stored is None else str(self.stored)
        new = expected if share is None or share.seq is None else str(share.seq)
        return CursorMove(self.cursor_key, expected, new)

    def position_after(self, share: Share) -> Position:
        """Return what is noted with the cursor that a batch stores."""
        before = None if self.position is None else self.position.time
        return Position(share.seq, share.time or before)


class Writer:
    """Appends the frames of one or several hosts, on a connection of its own."""

    def __init__(
        self,
        store: Store,
        high_water_marks: Mapping[str, int],
        rule: BatchRule,
        metrics: IngesterMetrics,
        listener: Listener,
        detours: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """What a stream of `detours` has no room for goes to the other one that is named there."""
        self._store = store
        self._thread = StoreThread()
        self._marks = high_water_marks
        self._detours = detours
        self._metrics = metrics
        self._listener = listener
        self._batcher = Batcher[Lane](rule)
        self._changed = trio.Event()
        self._hurrying = 0  # lanes that wait for everything to be written
        self._closing = False
        self._in_flight: Batch[Lane] | None = None
        self._added = self._done = 0  # frames so far
        self.lanes: list[Lane] = []
        self.is_full = False
        self.given_up = False
        self._throttle = Throttled()

    def lane(self, cursor_key: str) -> Lane:
        """Return a new lane for a host."""
        lane = Lane(self, cursor_key)
        self.lanes.append(lane)
        return lane

    @property
    def events(self) -> int:
        """Events in memory."""
        held = len(self._in_flight.entries) if self._in_flight else 0
        return self._batcher.events + held

    @property
    def bytes(self) -> int:
        """Their size, and that of what is written with them."""
        return self._batcher.bytes + (self._in_flight.size if self._in_flight else 0)

    @property
    def idle(self) -> bool:
        """Whether everything that was put in has been written."""
        return not self._batcher and self._in_flight is None

    def add(self, lane: Lane, frames: Iterable[Converted]) -> None:
        """Take frames of a lane; see `Lane.put`."""
        given = list(frames)
        self._batcher.add(lane, given, trio.current_time())
        self._added += len(given)
        self._wake()

    async def read(self, cursor_key: str) -> tuple[str | None, Noted]:
        """Return a stored cursor and what was noted with it. Raises the errors of the store."""
        text = await self._thread.call(read_cursor, self._store, cursor_key)
        noted = await self._thread.call(self._store.call, "HGET", CURSOR_POSITIONS, cursor_key)
        return text, noted

    async def flush(self) -> None:
        """Write what was put in so far and wait until it is written, dropped or given up."""
        target = self._added
        self._hurrying += 1
        self._wake()
        try:
            while self._done < target and not self.given_up:
                await self.changed()
        finally:
            self._hurrying -= 1

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
            self._done += self._in_flight.frames
            self._in_flight = None
            self._wake()

    def _is_due(self) -> bool:
        if self._closing or self._hurrying:
            return bool(self._batcher)
        return self._batcher.deadline() <= trio.current_time()

    async def _wait_until_due(self) -> None:
        now, deadline = trio.current_time(), self._batcher.deadline()
        with trio.move_on_at(min(deadline, now + LOOK_SECONDS)):
            await self._changed.wait()
            return
        if self.idle and not self._closing:
            await self._look_at_cursors()

    async def _look_at_cursors(self) -> None:
        """See whether a cursor was moved by somebody else while its host has nothing to say."""
        nothing = self._batcher.take()
        if not any(lane.move(None) for lane in self.lanes):
            return
        try:
            result = await self._thread.call(partial(self._append, nothing))
        except (StoreUnavailable, StoreRejected):
            return  # the next batch will meet it, and say so
        if result.status == "cursor_moved":
            self._finish(nothing, result)
            self._wake()

    async def _write(self, batch: Batch[Lane], hurrying: trio.Event) -> None:
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
                detour = self._detours.get(result.full_stream or "")
                if detour is not None:
                    batch = _by_detour(batch, result.full_stream or "", detour)
                    self._note_detour(result.full_stream or "", detour)
                    continue
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

    def _append(self, batch: Batch[Lane]) -> Appended:
        moves, positions = [], dict[bytes, bytes]()
        # All cursors are looked at: if the store lost its newest data, what one host repeats must
        # not be passed over for what another one brought and is lost.
        for lane in self.lanes:
            share = batch.shares.get(lane)
            move = lane.move(share)
            if move is not None:
                moves.append(move)
            if share is not None and share.seq is not None:
                position = lane.position_after(share)
                positions[lane.cursor_key.encode()] = orjson.dumps(
                    {"seq": position.seq, "time": position.time}
                )
        hashes = _by_key(batch.states)
        if positions:
            hashes[CURSOR_POSITIONS] = positions
        return append(
            self._store, batch.entries, cursors=moves, hashes=hashes, high_water_marks=self._marks
        )

    def _finish(self, batch: Batch[Lane], result: Appended) -> None:
        self.is_full = False
        if result.status == "cursor_moved":
            self._metrics.error("cursor_moved")
            _log.error(
                "a stored cursor is not the one that was written last; reading again from it",
                extra={"key": result.moved_key, "stored": result.stored_cursor,
                       "expected": {lane.cursor_key: lane.stored for lane in batch.shares}},
            )  # fmt: skip
            self._batcher.clear()
            self._done = self._added - batch.frames
            for lane in self.lanes:
                lane.moved.set()
            self._listener.dropped()
            return
        for lane, share in batch.shares.items():
            if share.seq is not None:
                lane.stored = lane.last_known = share.seq
                lane.position = lane.position_after(share)
        self._listener.written(batch, result.lengths)

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

    def _note_detour(self, full: str, detour: str) -> None:
        self._metrics.store_retries.labels("detour").inc()
        held_back = self._throttle.allow(full)
        if held_back is not None:
            extra = {"full": full, "instead": detour, "unlogged": held_back}
            _log.warning("no room in a stream, its entries go to another one", extra=extra)

    def _give_up(self) -> None:
        self.given_up = True
        _log.warning(
            "stopping with unwritten events; the relay sends them again from the cursor",
            extra={
                "events": self.events,
                "cursors": {lane.cursor_key: lane.stored for lane in self.lanes},
            },
        )

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _by_detour(batch: Batch[Lane], full: str, detour: str) -> Batch[Lane]:
    """Return a batch whose entries for one stream are for another one."""
    entries = tuple(
        entry._replace(stream=detour) if entry.stream == full else entry for entry in batch.entries
    )
    return replace(batch, entries=entries)


def _by_key(states: Mapping[bytes, RepoState]) -> dict[str, dict[bytes, bytes]]:
    """Return states as fields of hashes."""
    hashes: dict[str, dict[bytes, bytes]] = {}
    for digest, state in states.items():
        key, field = state_key(digest)
        hashes.setdefault(key, {})[field] = state
    return hashes
