"""Measures the streams over a short window: lengths, memory, rates, lag, age, capacity.

`measure` and `between` query Redis; the evaluation of two measurements and the advice are pure.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rsky_pipeline.configuration.expectations import high_water_marks
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.lag import (
    GroupReport,
    ServerMemory,
    StreamReport,
    collect,
    server_memory,
    stream_bytes,
)
from rsky_pipeline.streams.names import (
    BSYNC_LIVE,
    FIREHOSE_BACKFILL,
    FIREHOSE_LIVE,
    LABEL_LIVE,
    REPO_STREAMS,
    STREAMS,
    dead_letters,
)
from rsky_pipeline.streams.scan import newest

_SAMPLE = 200  # entries whose size is looked at
_FEW = 100  # entries below which a stream's memory is mostly its own frame
_OVERHEAD = 1.15  # memory of an entry by the size of its texts, measured at 100,000 entries
# The share of the memory that streams may fill: the rest is for acknowledgements, copies while the
# file of commands is written anew, and entries that producers append before they notice.
USABLE_SHARE = 0.7
# Bytes of a usual entry. The memory is shared out by them, not by what streams hold at the moment:
# the share of a stream must not change because another one is empty.
_USUAL_BYTES = {
    FIREHOSE_LIVE: 700.0, FIREHOSE_BACKFILL: 700.0, LABEL_LIVE: 400.0, BSYNC_LIVE: 600.0,
    **dict.fromkeys(REPO_STREAMS, 250.0),
}  # fmt: skip
# Without a limit of its own the server shares the machine with others.
MACHINE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Advice:
    """The capacity of one stream. Hours are at the measured rate.

    `mark_hours` is how long consumers may stand still before the producer has to wait,
    `memory_hours` how long until the memory is used up, and `fitting_mark` the highest mark with
    which this stream's share of the memory is enough.
    """

    stream: str
    bytes_each: float | None
    rate_in: float | None
    mark: int | None
    mark_hours: float | None
    memory_hours: float | None
    fitting_mark: int | None
    text: str


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """A group, and how many entries a second it finishes (None where that is not known)."""

    report: GroupReport
    rate_out: float | None


@dataclass(frozen=True, slots=True)
class StreamFigures:
    """One stream measured; None where a figure is not known. Rates are entries per second."""

    report: StreamReport
    bytes: int
    bytes_each: float | None
    rate_in: float | None
    mark: int | None  # the high-water mark
    dead_letters: int = 0
    groups: tuple[GroupFigures, ...] = ()

    @property
    def name(self) -> str:
        """The stream."""
        return self.report.name


@dataclass(frozen=True, slots=True)
class Measurement:
    """All streams, measured over `seconds`."""

    seconds: float
    streams: tuple[StreamFigures, ...]
    memory: ServerMemory

    @property
    def other_bytes(self) -> int:
        """Memory used by other things than streams: dead letters, states, other programs."""
        return max(0, self.memory.used - sum(item.bytes for item in self.streams))

    def advice(self) -> list[Advice]:
        """Return how much each stream can hold beside what else is in the memory."""
        usable = usable_bytes(self.memory.limit, self.memory.machine)
        return advise(self.streams, usable and max(1, usable - self.other_bytes))

    def stream(self, name: str) -> StreamFigures:
        """Return one stream. Raises KeyError."""
        return next(item for item in self.streams if item.name == name)


def measure(
    store: Store,
    settings: Settings,
    *,
    seconds: float,
    streams: Sequence[str] = STREAMS,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Measurement:
    """Look twice, `seconds` apart; with 0 there are no rates.

    Raises StoreUnavailableError and StoreRejectedError.
    """
    before, then = collect(store, streams), clock()
    after = before
    if seconds > 0:
        sleep(seconds)
        after = collect(store, streams)
    elapsed = clock() - then if seconds > 0 else 0.0
    return between(store, settings, before, after, elapsed)


def between(
    store: Store,
    settings: Settings,
    before: Sequence[StreamReport],
    after: Sequence[StreamReport],
    elapsed: float,
) -> Measurement:
    """Return the measurement between two looks."""
    marks = high_water_marks(settings)
    figures = []
    for old, new in zip(before, after, strict=True):
        rate = rate_in(old, new, elapsed)
        groups = tuple(
            GroupFigures(group, _rate_out(old, group, rate, elapsed)) for group in new.groups
        )
        used = stream_bytes(store, new.name) if new.length else 0
        each = _bytes_each(store, new, used)
        letters = int(store.call("XLEN", dead_letters(new.name)))
        figures.append(StreamFigures(new, used, each, rate, marks.get(new.name), letters, groups))
    return Measurement(elapsed, tuple(figures), server_memory(store))


def rate_in(old: StreamReport, new: StreamReport, elapsed: float) -> float | None:
    """Return entries added per second.

    None without a window, for a stream begun anew, and where the server does not count them.
    """
    if elapsed <= 0 or new.added < old.added or not (old.counts_added and new.counts_added):
        return None
    return (new.added - old.added) / elapsed


def _rate_out(
    old: StreamReport, group: GroupReport, rate: float | None, elapsed: float
) -> float | None:
    """Return entries finished per second: those added, less the growth of those waiting."""
    before = old.group(group.name)
    if before is None or rate is None:
        return None
    waiting = (group.lag + group.pending) - (before.lag + before.pending)
    return max(0.0, rate - waiting / elapsed)


def _bytes_each(store: Store, report: StreamReport, used: int) -> float | None:
    if report.length >= _FEW:
        return used / report.length
    sample = newest(store, report.name, _SAMPLE) or newest(
        store, dead_letters(report.name), _SAMPLE
    )
    if not sample:
        return None
    return sum(entry.size for entry in sample) / len(sample) * _OVERHEAD


def document(measurement: Measurement) -> dict[str, Any]:
    """Return a measurement as JSON."""
    advice = {item.stream: item for item in measurement.advice()}
    return {
        "window_seconds": round(measurement.seconds, 3),
        "memory": {
            "used_bytes": measurement.memory.used,
            "limit_bytes": measurement.memory.limit or None,
            "other_bytes": measurement.other_bytes,
            "policy": measurement.memory.policy,
        },
        "streams": [
            {
                "name": item.name,
                "length": item.report.length,
                "high_water_mark": item.mark,
                "memory_bytes": item.bytes,
                "rate_in": _rounded(item.rate_in),
                "oldest_age_seconds": item.report.oldest_age_seconds,
                "dead_letters": item.dead_letters,
                "groups": [_group_document(group) for group in item.groups],
                "capacity": asdict(advice[item.name]),
            }
            for item in measurement.streams
        ],
    }


def _group_document(group: GroupFigures) -> dict[str, Any]:
    report = group.report
    return {
        "name": report.name,
        "lag": report.lag,
        "pending": report.pending,
        "consumers": report.consumers,
        "oldest_unacked_seconds": report.oldest_unacked_age_seconds,
        "last_delivered_id": report.last_delivered_id,
        "rate_out": _rounded(group.rate_out),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


# --- capacity: how long the streams can buffer the input, and which marks fit in memory. Pure. ----


def usable_bytes(limit: int, machine: int) -> int:
    """Return how many bytes streams may take together; 0 when nothing is known."""
    return int((limit or machine * MACHINE_SHARE) * USABLE_SHARE)


def advise(loads: Sequence[StreamFigures], usable: int) -> list[Advice]:
    """Return advice for each stream; the memory is shared out by marks times usual sizes."""
    wanted = [(load.mark or 0) * _USUAL_BYTES.get(load.name, 500.0) for load in loads]
    together = sum(wanted) or 1.0
    return [_advice(load, usable * own / together) for load, own in zip(loads, wanted, strict=True)]


def _advice(load: StreamFigures, share: float) -> Advice:
    size, rate, mark = load.bytes_each, load.rate_in, load.mark
    fitting = int(share / size) if size and share else None
    mark_hours = mark / rate / 3600 if mark and rate else None
    memory_hours = fitting / rate / 3600 if fitting and rate else None
    text = _text(load, fitting, mark_hours, memory_hours)
    return Advice(load.name, size, rate, mark, mark_hours, memory_hours, fitting, text)


def _text(
    load: StreamFigures, fitting: int | None, mark_hours: float | None, memory_hours: float | None
) -> str:
    if load.bytes_each is None:
        return "no entries to measure"
    parts = [f"{load.bytes_each:,.0f} bytes an entry"]
    if load.mark is not None and mark_hours is not None:
        parts.append(f"the mark of {load.mark:,} is {_hours(mark_hours)} at {load.rate_in:,.0f}/s")
    if fitting is not None and memory_hours is not None:
        parts.append(f"the memory is enough for {fitting:,} entries, {_hours(memory_hours)}")
    elif fitting is not None:
        parts.append(f"the memory is enough for {fitting:,} entries")
    if load.mark is not None and fitting is not None and load.mark > fitting:
        parts.append("lower the mark or raise maxmemory")
    return "; ".join(parts)


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"
