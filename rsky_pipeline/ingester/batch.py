"""When frames become a batch: by number, by size, by age. Pure; times are monotonic seconds."""

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Generic, TypeVar

from rsky_pipeline.ingester.convert import Converted
from rsky_pipeline.ingester.repo_state import RepoState
from rsky_pipeline.streams.append import Entry

Source = TypeVar("Source", bound=Hashable)
_STATE_BYTES = 100  # what an unwritten state takes in memory


@dataclass(frozen=True, slots=True)
class BatchRule:
    """A batch is due as soon as one of the limits is reached. Frames are never split."""

    max_events: int = 500
    max_bytes: int = 4 * 1024 * 1024
    max_age: float = 0.1
    max_cursor_age: float = 1.0  # for frames of which nothing is kept but their seq


@dataclass(slots=True)
class Share:
    """What one source has in a batch."""

    entries: list[Entry] = field(default_factory=list)
    seq: int | None = None  # of its newest frame
    time: str | None = None  # of its newest frame that has one


@dataclass(frozen=True, slots=True)
class Batch(Generic[Source]):
    """Entries to append in one step, with the states and the cursors that cover exactly them."""

    entries: tuple[Entry, ...]
    states: dict[bytes, RepoState]
    shares: dict[Source, Share]
    size: int
    frames: int  # that are over with this batch


@dataclass(slots=True)
class _Waiting(Generic[Source]):
    source: Source
    entries: list[Entry]
    states: dict[bytes, RepoState]
    size: int
    since: float
    seqs: dict[Source, tuple[int, str | None]]
    frames: int = 1


class Batcher(Generic[Source]):
    """Frames of one or several sources that wait to be written, in the order they were added."""

    def __init__(self, rule: BatchRule) -> None:
        self._rule = rule
        self._waiting: deque[_Waiting[Source]] = deque()
        self.events = 0
        self.bytes = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, source: Source, frames: Iterable[Converted], now: float) -> None:
        """Take frames of a source in the order in which they came."""
        waiting = self._waiting
        for frame in frames:
            seq = frame.seq
            size = frame.size + _STATE_BYTES * len(frame.states)
            if frame.entries or not waiting:
                seqs = {} if seq is None else {source: (seq, frame.time)}
                waiting.append(_Waiting(source, frame.entries, dict(frame.states), size, now, seqs))
                self.events += len(frame.entries)
            else:
                # Nothing to append: what covers the frame before it may cover this one as well, so
                # that any number of filtered and repeated frames takes little memory.
                last = waiting[-1]
                last.frames += 1
                if seq is not None:
                    last.seqs[source] = (seq, frame.time)
                if size:
                    last.states.update(frame.states)
                    last.size += size
            self.bytes += size

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
        shares: dict[Source, Share] = {}
        size = frames = 0
        while self._waiting and (not frames or self._fits(len(entries), size)):
            frame = self._waiting.popleft()
            frames += frame.frames
            size += frame.size
            if frame.states:
                states |= frame.states
            if frame.entries:
                entries += frame.entries
                _share(shares, frame.source).entries += frame.entries
            for source, (seq, time) in frame.seqs.items():
                share = _share(shares, source)
                share.seq, share.time = seq, time or share.time
        self.events -= len(entries)
        self.bytes -= size
        return Batch(tuple(entries), states, shares, size, frames)

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


def _share(shares: dict[Source, Share], source: Source) -> Share:
    share = shares.get(source)
    if share is None:
        share = shares[source] = Share()
    return share
