"""When frames become a batch: by number, by size, by age. Pure; times are monotonic seconds."""

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
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
    shares: dict[Source, Share]
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

    def cover(self, source: Source, frame: Converted, size: int) -> None:
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

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, source: Source, frames: Iterable[Converted], now: float) -> None:
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
            if frame.state is not None:
                states[frame.state[0]] = frame.state[1]
            if frame.entries:
                entries += frame.entries
            if frame.entries or frame.seq is not None:
                _share(shares, frame.source).take(frame.entries, frame.seq, frame.time)
            if frame.covered is not None:
                states.update(frame.covered.states)
                for source, (seq, time) in frame.covered.seqs.items():
                    _share(shares, source).take((), seq, time)
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
