"""When frames become a batch: by number, by size, by age. Pure; times are monotonic seconds."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from rsky_pipeline.ingester.convert import Converted
from rsky_pipeline.streams.append import Entry


@dataclass(frozen=True, slots=True)
class BatchRule:
    """A batch is due as soon as one of the limits is reached. Frames are never split."""

    max_events: int = 500
    max_bytes: int = 4 * 1024 * 1024
    max_age: float = 0.1
    max_cursor_age: float = 1.0  # for frames of which nothing is kept but their seq


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries to append in one step, and the cursor that covers exactly them."""

    entries: tuple[Entry, ...]
    seq: int | None
    time: str | None  # of the newest event
    size: int


@dataclass(slots=True)
class _Waiting:
    entries: list[Entry]
    size: int
    since: float
    seq: int | None
    time: str | None


class Batcher:
    """Frames that wait to be written, in order."""

    def __init__(self, rule: BatchRule) -> None:
        self._rule = rule
        self._waiting: deque[_Waiting] = deque()
        self.events = 0
        self.bytes = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, frames: Iterable[Converted], now: float) -> None:
        """Take frames in the order in which they came."""
        waiting = self._waiting
        for frame in frames:
            if frame.entries or not waiting:
                waiting.append(_Waiting(frame.entries, frame.size, now, frame.seq, frame.time))
                self.events += len(frame.entries)
                self.bytes += frame.size
            elif frame.seq is not None:
                # Nothing to write: the cursor of the frame before it may cover this one as well,
                # so that any number of filtered frames takes no memory.
                waiting[-1].seq, waiting[-1].time = frame.seq, frame.time

    def deadline(self) -> float:
        """Return when the next batch is due; infinity if nothing waits."""
        if not self._waiting:
            return inf
        if self.events >= self._rule.max_events or self.bytes >= self._rule.max_bytes:
            return -inf
        first = self._waiting[0]
        return first.since + (self._rule.max_age if self.events else self._rule.max_cursor_age)

    def take(self) -> Batch:
        """Remove and return the next batch, due or not; empty if nothing waits."""
        entries: list[Entry] = []
        size, seq, time = 0, None, None
        while self._waiting and (not entries or self._fits(len(entries), size)):
            frame = self._waiting.popleft()
            entries += frame.entries
            size += frame.size
            seq = seq if frame.seq is None else frame.seq
            time = frame.time or time
        self.events -= len(entries)
        self.bytes -= size
        return Batch(tuple(entries), seq, time, size)

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
