"""Writing frames to Redis: batches with their states and cursors, in order.

The rule that correctness rests on: a cursor is stored in the same step of the server as everything
that it covers, and never passes anything that is not stored.

- A batch moves a host's cursor to the newest frame of that host in it, so frames are taken in the
  order in which they came. A frame of which nothing is kept (filtered, or a replay) moves it as
  well, else a quiet host would be read from an old cursor again.
- All relays share one writer and so one order. A replay that relay B sends is covered by the commit
  that relay A sent before it, in this batch or an earlier one; with writers of their own, B's
  cursor could be stored before A's commit, and a crash between would lose the commit.
- Every batch compares the cursors of all hosts, also of those that it does not move. If Redis lost
  its newest data, a stored cursor is lower than the one written last; then the batch is refused,
  everything in memory is dropped with the states that rest on it, and all hosts are read again from
  their cursors. Comparing only the cursors that move would let B's replays pass a commit of A that
  is lost.

A batch that was taken is written or still held. Two things end that: another cursor is stored than
the batch follows on, or the worker has to go; in both cases the hosts send everything again.
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import orjson
import trio

from rsky_pipeline.ingester.commits.states import RepoState, state_key
from rsky_pipeline.ingester.frames import PendingFrame
from rsky_pipeline.ingester.sequence import Position, parse_cursor, parse_position
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.streams.append import Appended, CursorMove, Entry, append, read_cursor
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.marks import again_until
from rsky_pipeline.streams.names import CURSOR_POSITIONS, NUMBERINGS

_log = logging.getLogger(__name__)
Source = TypeVar("Source", bound=Hashable)
Note = bytes | None  # `bytes` is a property of the writer
_FULL_POLL_SECONDS = (0.05, 0.25)  # first and longest wait for room in a stream
LOOK_SECONDS = 3.0  # between looks at the cursors while there is nothing to write
_GIVE_UP_SECONDS = 5.0  # for a store that does not answer while the worker is stopping
_STATE_BYTES = 100  # of memory, for an unwritten state


@dataclass(frozen=True, slots=True)
class BatchRule:
    """A batch is due as soon as one of the limits is reached. Frames are never split."""

    max_events: int = 500
    max_bytes: int = 4 * 1024 * 1024
    max_age: float = 0.1
    max_cursor_age: float = 1.0  # for frames of which nothing is kept but their seq


@dataclass(slots=True)
class SourceBatch:
    """The part of a batch that is of one source."""

    entries: list[Entry] = field(default_factory=list)
    seq: int | None = None  # of its newest frame
    time: str | None = None  # of its newest frame that has one

    def take(self, entries: Sequence[Entry], seq: int | None, time: str | None) -> None:
        """Add a frame."""
        self.entries += entries
        if seq is not None:
            self.seq, self.time = seq, time or self.time


@dataclass(frozen=True, slots=True)
class Batch(Generic[Source]):
    """Entries to append in one step, with the states and the cursors that cover exactly them."""

    entries: tuple[Entry, ...]
    states: dict[bytes, RepoState]
    parts: dict[Source, SourceBatch]
    size: int
    frames: int  # that are over with this batch


@dataclass(slots=True)
class _Covered(Generic[Source]):
    states: dict[bytes, RepoState] = field(default_factory=dict)
    seqs: dict[Source, tuple[int, str | None]] = field(default_factory=dict)


@dataclass(slots=True)
class _Waiting(Generic[Source]):
    source: Source
    entries: list[Entry]
    state: tuple[bytes, RepoState] | None
    size: int
    since: float
    seq: int | None
    time: str | None
    frames: int = 1
    covered: _Covered[Source] | None = None  # with it: frames that have no entries

    def cover(self, source: Source, frame: PendingFrame, size: int) -> None:
        """Have it stand for a frame behind it of which there is nothing to append.

        So any number of filtered and repeated frames takes little memory.
        """
        covered = self.covered = self.covered or _Covered()
        self.frames += 1
        self.size += size
        if frame.seq is not None:
            covered.seqs[source] = (frame.seq, frame.time)
        if frame.state is not None:
            covered.states[frame.state[0]] = frame.state[1]


class Batcher(Generic[Source]):
    """Frames of one or several sources that wait to be written, in the order they were added."""

    def __init__(self, rule: BatchRule) -> None:
        self._rule = rule
        self._waiting: deque[_Waiting[Source]] = deque()
        self.events = 0
        self.bytes = 0
        self.added = 0  # frames so far

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, source: Source, frames: Sequence[PendingFrame], now: float) -> None:
        """Take frames of a source in the order in which they came."""
        waiting = self._waiting
        for frame in frames:
            entries = frame.entries
            size = frame.size if frame.state is None else frame.size + _STATE_BYTES
            if entries or not waiting:
                waiting.append(
                    _Waiting(source, entries, frame.state, size, now, frame.seq, frame.time)
                )
                self.events += len(entries)
            else:
                waiting[-1].cover(source, frame, size)
            self.bytes += size
        self.added += len(frames)

    def deadline(self) -> float:
        """Return when the next batch is due; infinity if nothing waits."""
        if not self._waiting:
            return inf
        if self.events >= self._rule.max_events or self.bytes >= self._rule.max_bytes:
            return -inf
        first = self._waiting[0]
        return first.since + (self._rule.max_age if self.events else self._rule.max_cursor_age)

    def take(self) -> Batch[Source]:
        """Remove and return the next batch, due or not; empty if nothing waits."""
        entries: list[Entry] = []
        states: dict[bytes, RepoState] = {}
        parts = defaultdict[Source, SourceBatch](SourceBatch)
        size = frames = 0
        while self._waiting and (not frames or self._fits(len(entries), size)):
            frame = self._waiting.popleft()
            frames += frame.frames
            size += frame.size
            if frame.state is not None:
                states[frame.state[0]] = frame.state[1]
            if frame.entries:
                entries += frame.entries
            if frame.entries or frame.seq is not None:
                parts[frame.source].take(frame.entries, frame.seq, frame.time)
            if frame.covered is not None:
                states.update(frame.covered.states)
                for source, (seq, time) in frame.covered.seqs.items():
                    parts[source].take((), seq, time)
        self.events -= len(entries)
        self.bytes -= size
        return Batch(tuple(entries), states, parts, size, frames)

    def clear(self) -> None:
        """Forget everything that waits."""
        self._waiting.clear()
        self.events = self.bytes = 0

    def _fits(self, events: int, size: int) -> bool:
        frame = self._waiting[0]
        return (
            events + len(frame.entries) <= self._rule.max_events
            and size + frame.size <= self._rule.max_bytes
        )


class FrameSink(Protocol):
    """Takes frames that are to be written; a `SourceCursor` is one."""

    closed: bool  # nothing is taken any more until the connection begins anew

    def put(self, frames: Sequence[PendingFrame]) -> None:
        """Take frames in the order in which they came."""


# Called with a host's part of each batch that the store has, and the lengths of its streams.
CountPart = Callable[[SourceBatch, Mapping[str, int]], object]


class SourceCursor:
    """The cursor of one host's stream, and the way of its frames to the writer."""

    def __init__(self, writer: "Writer", key: str, count: CountPart) -> None:
        self.writer = writer
        self.key = key
        self.count = count
        self.text: str | None = None  # the cursor that the store holds, as far as we know
        self.stored: int | None = None  # the same as a number
        self.last_known: int | None = None  # the highest that we ever stored
        self.began: int | None = None  # where reading began while no cursor was stored
        self.position: Position | None = None  # the note of the stored cursor
        self.moved = trio.Event()  # set when another cursor is stored; `load` follows it
        # More that is stored with the cursor, for a number up to which it covers the source.
        self.notes: Callable[[int], Mapping[str, Any]] = lambda _: {}
        self.again_until = -1  # events up to this number are written again, see `streams.marks`
        # Where its host refused to continue, until the first event behind that is stored.
        self.refused: Position | None = None
        self.numbering = (
            0  # when the host began to number its events anew; 0: never, as far as known
        )
        self._new_numbering = False  # which is not stored yet
        self.closed = False  # since `moved` was set, until the cursor is loaded again
        self._loaded = False

    def put(self, frames: Sequence[PendingFrame]) -> None:
        """Take frames in the order in which they came; never waits, so watch `writer.events`."""
        if not self.closed:  # else they follow on frames that are not written any more
            self.writer.batcher.add(self, frames, trio.current_time())
            self.writer.changed.unpark_all()

    async def load(self) -> None:
        """Go on at the stored cursor; waits for the store. Raises InvalidCursorError."""
        self.text, noted, numbering = await self.writer.read(self.key)
        self.again_until = await self.writer.read_again(self.key)
        self.stored = parse_cursor(self.text)
        self.position = parse_position(noted)
        if self.stored is None and self.position is not None and self.position.reset:
            self.last_known = None  # an operator wants the initial position, not the last one
        elif self.last_known is None:
            self.last_known = self.stored
        if not self._new_numbering:
            self.numbering = int(numbering) if numbering and numbering.isdigit() else 0
        refused = -1 if self.refused is None else self.refused.seq or 0
        if self.stored is None or self.stored > refused:
            self.refused = None  # the command that took it away or set it forward noted the gap
        self.moved, self.closed = trio.Event(), False
        self._loaded = True

    def refuse(self) -> None:
        """Note that the host refused the stored cursor: it numbers its events anew.

        Events that it numbered before and that did not come are behind a gap, whatever cursor it
        takes next, and its numbers order nothing over the two numberings.
        """
        if self.stored is None or self.refused is not None:
            return
        position = self.position
        known = position is not None and position.seq == self.stored
        self.refused = Position(self.stored, position.time if position and known else None)
        self.numbering = max(self.numbering + 1, int(time.time()))
        self._new_numbering = True

    def move(self, part: SourceBatch | None) -> CursorMove | None:
        """Return how a batch moves the cursor, or that it must stay; None while it is not known."""
        if not self._loaded or self.closed:
            return None
        expected = None if self.stored is None else str(self.stored)
        new = expected if part is None or part.seq is None else str(part.seq)
        return CursorMove(self.key, expected, new)

    @property
    def unstored_numbering(self) -> int | None:
        """The numbering that is to be stored with the next move of the cursor, if it is new."""
        return self.numbering if self._new_numbering else None

    def position_stored(self, part: SourceBatch) -> None:
        """Note that a batch with a part of this source is stored."""
        if part.seq is not None:
            self.position = self.position_after(part)
            self.text, self.stored = str(part.seq), part.seq
            self.last_known = part.seq
            self.refused, self._new_numbering = None, False

    def position_after(self, part: SourceBatch) -> Position:
        """Return the note of the cursor that a batch stores."""
        before = None if self.position is None else self.position.time
        return Position(part.seq, part.time or before)


class Writer:
    """Appends the frames of one or several hosts, on a connection of its own."""

    def __init__(
        self,
        link: Link[Store],
        high_water_marks: Mapping[str, int],
        rule: BatchRule,
        metrics: IngesterMetrics,
        overflow: Mapping[str, str] = MappingProxyType({}),
        written: Callable[[Mapping[bytes, RepoState]], object] = lambda _: None,
        dropped: Callable[[], object] = lambda: None,
    ) -> None:
        """`overflow`: by the name of a stream, the one that takes its entries while it is full.

        `written` is called with the states of each batch that the store has, `dropped` when
        everything unwritten was dropped, to be read again from the cursors.
        """
        self._link = link
        self._marks = high_water_marks
        self._overflow = overflow
        self._metrics = metrics
        self._written = written
        self._dropped = dropped
        self.batcher = Batcher[SourceCursor](rule)
        self.changed = trio.lowlevel.ParkingLot()  # wakes when frames were put in or written
        self._flushing = 0  # followers that wait for everything to be written
        self._closing = trio.Event()
        self._giving_up = trio.Event()  # set when there is no time left to try again
        self._in_flight: Batch[SourceCursor] | None = None
        self._done = 0  # frames so far
        self.batches = 0  # that the store has
        self.cursors: list[SourceCursor] = []
        self.is_full = False
        self.given_up = False
        self._log = ThrottledLog(_log)

    def cursor(self, key: str, count: CountPart) -> SourceCursor:
        """Return a new cursor for a host's stream, stored at a key."""
        cursor = SourceCursor(self, key, count)
        self.cursors.append(cursor)
        return cursor

    @property
    def events(self) -> int:
        """Events in memory."""
        held = len(self._in_flight.entries) if self._in_flight else 0
        return self.batcher.events + held

    @property
    def bytes(self) -> int:
        """Their size, and that of the states that are written with them."""
        return self.batcher.bytes + (self._in_flight.size if self._in_flight else 0)

    @property
    def store_is_away(self) -> bool:
        """Whether the last call failed because of the store."""
        return self._link.in_trouble

    @property
    def idle(self) -> bool:
        """Whether everything that was put in has been written."""
        return not self.batcher and self._in_flight is None

    async def read(self, cursor_key: str) -> tuple[str | None, Note, Note]:
        """Return a stored cursor, its note and its numbering; waits for the store."""
        return await self._link.retry(partial(_read_position, key=cursor_key))

    async def read_again(self, cursor_key: str) -> int:
        """Return up to which number events of a cursor are written again; -1 for none."""
        return await self._link.retry(partial(again_until, key=cursor_key))

    async def flush(self) -> None:
        """Wait until all frames that were put in so far are written, dropped or given up."""
        target = self.batcher.added
        self._flushing += 1
        self.changed.unpark_all()
        try:
            while self._done < target and not self.given_up:
                await self.changed.park()
        finally:
            self._flushing -= 1

    def close(self) -> None:
        """Let `run` end when everything is written; a store that is full ends it at once."""
        self._closing.set()
        self.changed.unpark_all()

    async def run(self, escalated: trio.Event) -> None:
        """Write batches as they become due, until closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._limit_closing, escalated)
            while not (self._closing.is_set() and self.idle) and not self.given_up:
                if not self._is_due():
                    await self._wait_until_due()
                    continue
                self._in_flight = self.batcher.take()
                await self._write(self._in_flight)
                self._done += self._in_flight.frames
                self._in_flight = None
                self.changed.unpark_all()
            nursery.cancel_scope.cancel()

    async def _limit_closing(self, escalated: trio.Event) -> None:
        """End the tries of a batch some time after `close`, or at once when escalated."""
        await self._closing.wait()
        with trio.move_on_after(_GIVE_UP_SECONDS):
            await escalated.wait()
        self._giving_up.set()

    def _is_due(self) -> bool:
        if self._closing.is_set() or self._flushing:
            return bool(self.batcher)
        return self.batcher.deadline() <= trio.current_time()

    async def _wait_until_due(self) -> None:
        now, deadline = trio.current_time(), self.batcher.deadline()
        with trio.move_on_at(min(deadline, now + LOOK_SECONDS)):
            await self.changed.park()
            return
        if self.idle and not self._closing.is_set():
            await self._look_at_cursors()

    async def _look_at_cursors(self) -> None:
        """Compare the cursors while no host sends anything: an operator may have moved one."""
        nothing = self.batcher.take()
        if not any(cursor.move(None) for cursor in self.cursors):
            return
        result = await self._link.attempt(partial(self._append, batch=nothing))
        if result is not None and result.status == "cursor_moved":
            self._finish(nothing, result)
            self.changed.unpark_all()

    async def _write(self, batch: Batch[SourceCursor]) -> None:
        """Append a batch, however long it takes, or set `moved` or `given_up`."""
        wait = _FULL_POLL_SECONDS[0]
        while True:
            action = partial(self._append, batch=batch)
            result = await self._link.retry(action, until=self._giving_up)
            if result is None:
                self._give_up()
                return
            if result.status != "full":
                self._finish(batch, result)
                return
            full = result.full_stream or ""
            overflow = self._overflow.get(full)
            if overflow is not None:
                batch = _moved(batch, full, overflow)
                self._note_overflow(full, overflow)
                continue
            self._note_full(result)
            if self._closing.is_set():
                self._give_up()
                return
            with trio.move_on_after(wait):
                await self._closing.wait()
            wait = min(wait * 2, _FULL_POLL_SECONDS[1])

    def _append(self, store: Store, batch: Batch[SourceCursor]) -> Appended:
        moves, positions = [], dict[bytes, bytes]()
        numberings = dict[bytes, bytes]()
        for cursor in self.cursors:
            part = batch.parts.get(cursor)
            move = cursor.move(part)
            if move is not None:
                moves.append(move)
            if part is not None and part.seq is not None:
                position = cursor.position_after(part)
                positions[cursor.key.encode()] = orjson.dumps(
                    {"seq": position.seq, "time": position.time, **cursor.notes(part.seq)}
                )
                if (numbering := cursor.unstored_numbering) is not None:
                    numberings[cursor.key.encode()] = b"%d" % numbering
        hashes = _by_key(batch.states)
        if positions:
            hashes[CURSOR_POSITIONS] = positions
        if numberings:
            hashes[NUMBERINGS] = numberings
        return append(
            store, batch.entries, cursors=moves, hashes=hashes, high_water_marks=self._marks
        )

    def _finish(self, batch: Batch[SourceCursor], result: Appended) -> None:
        self.is_full = False
        if result.status == "cursor_moved":
            self._metrics.error("cursor_moved")
            _log.error(
                "stored cursor differs from the one written last; reading again from it",
                extra={"key": result.moved_key, "stored": result.stored_cursor,
                       "expected": {cursor.key: cursor.stored for cursor in batch.parts}},
            )  # fmt: skip
            self.batcher.clear()
            self._done = self.batcher.added - batch.frames
            for cursor in self.cursors:
                cursor.closed = True
                cursor.moved.set()
            self._dropped()
            return
        for cursor, part in batch.parts.items():
            cursor.position_stored(part)
            cursor.count(part, result.lengths)
        self.batches += 1
        self._written(batch.states)

    def _note_full(self, result: Appended) -> None:
        self._metrics.store_retries.labels("full").inc()
        if not self.is_full:
            where = result.full_stream or "the memory of Redis"
            _log.warning("stream full, writing paused", extra={"full": where})
        self.is_full = True

    def _note_overflow(self, full: str, overflow: str) -> None:
        self._metrics.store_retries.labels("detour").inc()
        self._log.warning(
            "stream full, entries appended to its overflow stream",
            key=full, stream=full, overflow=overflow,
        )  # fmt: skip

    def _give_up(self) -> None:
        self.given_up = True
        _log.warning(
            "stopped with unwritten events; hosts send them again from the cursor",
            extra={
                "events": self.events,
                "cursors": {cursor.key: cursor.stored for cursor in self.cursors},
            },
        )


def _read_position(store: Store, key: str) -> tuple[str | None, Note, Note]:
    noted = store.call("HGET", CURSOR_POSITIONS, key)
    return read_cursor(store, key), noted, store.call("HGET", NUMBERINGS, key)


def _moved(batch: Batch[SourceCursor], full: str, overflow: str) -> Batch[SourceCursor]:
    """Return a batch whose entries for one stream are for another one."""
    entries = tuple(
        entry._replace(stream=overflow) if entry.stream == full else entry
        for entry in batch.entries
    )
    return replace(batch, entries=entries)


def _by_key(states: Mapping[bytes, RepoState]) -> dict[str, dict[bytes, bytes]]:
    """Return states as fields of hashes."""
    hashes: dict[str, dict[bytes, bytes]] = {}
    for digest, state in states.items():
        key, field = state_key(digest)
        hashes.setdefault(key, {})[field] = state
    return hashes
