"""The rules by which a worker finds out that something is wrong: samples in, findings out. Pure.

A rule sees the samples of the last minutes, oldest first, and says what is wrong now. Moments are
monotonic seconds; counters only grow, so that differences within the history mean something.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile

from rsky_pipeline.observability.findings import Finding

HISTORY_SECONDS = 300.0
RATE_SECONDS = 10.0  # shortest window that a rate is judged by
STALL_SECONDS = 20.0
HISTORY_STALL_SECONDS = 120.0  # for streams of history, which wait while live events go first
LOOP_SECONDS, LOOP_TRIES = 15.0, 3  # tries that did not help, and for how long
LOOP_HISTORY_SECONDS = 120.0
STALE_SECONDS, STALE_WRITES, STALE_SHARE = 30.0, 20, 0.2
CATCHING_UP_SECONDS = 60.0
MEMORY_SHARE = 0.75
WAITED_SECONDS = 5.0  # of back-pressure within HELD_SECONDS
HELD_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class GroupSample:
    """A group of a stream. `read` is how many entries it was given so far, None if not known."""

    name: str
    lag: int
    pending: int
    position: str  # the last id that was delivered
    oldest_pending: str | None = None
    read: int | None = None


@dataclass(frozen=True, slots=True)
class StreamSample:
    """A stream.

    `added` is negative where the server does not count; `misplaced` is how many of its newest
    entries do not belong there, where looked.
    """

    name: str
    length: int
    added: int
    first_id: str | None = None
    mark: int | None = None
    misplaced: int = 0
    groups: tuple[GroupSample, ...] = ()


@dataclass(frozen=True, slots=True)
class Loop:
    """An activity that is repeated: how often it failed or was tried, and how far it came."""

    name: str
    tried: float
    done: float


@dataclass(frozen=True, slots=True)
class Written:
    """What an indexer did with a stream: events, those of them that were stale or misplaced."""

    stream: str
    events: float
    stale: float
    misplaced: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What one worker saw at one moment; what it does not know keeps its default."""

    moment: float
    streams: tuple[StreamSample, ...] = ()
    loops: tuple[Loop, ...] = ()
    written: tuple[Written, ...] = ()
    missing_metrics: tuple[str, ...] = ()
    memory_used: int = 0
    memory_limit: int = 0
    messages: float | None = None  # of relays
    cursor: float | None = None
    waited_seconds: float = 0.0  # that reading was held up
    lag_seconds: float = 0.0  # how old events are when they are written

    def loop(self, name: str) -> Loop | None:
        """Return a loop, None where it did not turn."""
        return next((item for item in self.loops if item.name == name), None)

    def stream(self, name: str) -> StreamSample | None:
        """Return a stream, None where it was not looked at."""
        return next((item for item in self.streams if item.name == name), None)


@dataclass(frozen=True, slots=True)
class Limits:
    """What is expected; a band with `rate_max` 0 is not checked."""

    live_streams: tuple[str, ...]
    rated_stream: str
    rate_min: float = 0.0
    rate_max: float = 0.0


@dataclass(slots=True)
class History:
    """The samples of the last minutes."""

    limits: Limits
    samples: list[Sample] = field(default_factory=list)

    def observe(self, sample: Sample) -> list[Finding]:
        """Take a sample and return what is wrong now."""
        oldest = sample.moment - HISTORY_SECONDS
        self.samples = [*dropwhile(lambda item: item.moment < oldest, self.samples), sample]
        return list(findings(self.samples, self.limits))


def findings(samples: Sequence[Sample], limits: Limits) -> Iterator[Finding]:
    """Return what is wrong at the last of these samples."""
    yield from _memory(samples[-1])
    yield from _metrics(samples[-1])
    yield from _polluted(samples)
    yield from _rate(samples, limits)
    yield from _stale(samples, limits)
    yield from _loops(samples)
    yield from _cursor(samples)
    yield from _back_pressure(samples)
    for stream in samples[-1].streams:
        yield from _stalls(samples, stream, limits)
        yield from _removed(samples, stream)


def since(samples: Sequence[Sample], seconds: float) -> Sample | None:
    """Return the newest sample that is at least so old, None if the history is shorter."""
    limit = samples[-1].moment - seconds
    return next((item for item in reversed(samples) if item.moment <= limit), None)


def _memory(now: Sample) -> Iterator[Finding]:
    if now.memory_limit and now.memory_used >= MEMORY_SHARE * now.memory_limit:
        share = now.memory_used / now.memory_limit
        yield Finding("redis_memory", "", f"{share:.0%} of {now.memory_limit:,} bytes are used")


def _metrics(now: Sample) -> Iterator[Finding]:
    if now.missing_metrics:
        yield Finding("missing_metrics", "", ", ".join(now.missing_metrics))


def _polluted(samples: Sequence[Sample]) -> Iterator[Finding]:
    now, then = samples[-1], since(samples, STALE_SECONDS) or samples[0]
    earlier = {item.stream: item.misplaced for item in then.written}
    found = {item.name: item.misplaced for item in now.streams}
    for item in now.written:
        met = int(item.misplaced - earlier.get(item.stream, item.misplaced))
        found[item.stream] = found.get(item.stream, 0) + met
    for name, count in found.items():
        if count:
            yield Finding("polluted_stream", name, f"{count} repo events")


def _rate(samples: Sequence[Sample], limits: Limits) -> Iterator[Finding]:
    now, then = samples[-1], since(samples, RATE_SECONDS)
    new = now.stream(limits.rated_stream)
    old = then.stream(limits.rated_stream) if then else None
    if not limits.rate_max or then is None or new is None or old is None:
        return
    if old.added < 0 or new.added < old.added:
        return
    rate = (new.added - old.added) / (now.moment - then.moment)
    detail = f"{rate:,.1f} events/s, expected {limits.rate_min:,.0f} to {limits.rate_max:,.0f}"
    if rate > limits.rate_max and now.lag_seconds <= CATCHING_UP_SECONDS:
        yield Finding("rate_out_of_band", "", detail)
    # A pause of reading is another finding.
    if rate < limits.rate_min and now.waited_seconds == then.waited_seconds:
        yield Finding("rate_out_of_band", "", detail)


def _stale(samples: Sequence[Sample], limits: Limits) -> Iterator[Finding]:
    """Find history that is older than what is stored.

    Live events are older whenever their repo was fetched before they were read: that is no sign.
    """
    now, then = samples[-1], since(samples, STALE_SECONDS) or samples[0]
    earlier = {item.stream: item for item in then.written}
    for item in now.written:
        old = earlier.get(item.stream, item)
        stale, events = item.stale - old.stale, item.events - old.events
        live = item.stream in limits.live_streams
        if not live and stale >= STALE_WRITES and stale >= STALE_SHARE * events:
            detail = f"{stale:,.0f} of {events:,.0f} events were stale"
            yield Finding("stale_writes", item.stream, detail)


def _loops(samples: Sequence[Sample]) -> Iterator[Finding]:
    """Find activities that are tried again and again and have not come any further meanwhile."""
    now = samples[-1]
    recent = [item for item in samples if item.moment >= now.moment - LOOP_HISTORY_SECONDS]
    for loop in now.loops:
        history = [(item.moment, item.loop(loop.name)) for item in recent]
        before = [then for _, then in history if then and then.done != loop.done]
        began, first = next((moment, then) for moment, then in history
                            if then and then.done == loop.done)  # fmt: skip
        seconds = now.moment - began
        # Waits between tries grow, so the tries right after the last progress count as well.
        tries = loop.tried - (before[-1] if before else first).tried
        if tries >= LOOP_TRIES and loop.tried > first.tried and seconds >= LOOP_SECONDS:
            detail = f"{loop.name}: {tries:,.0f} tries in {seconds:.0f} s and no progress"
            yield Finding("no_progress", "", detail)


def _cursor(samples: Sequence[Sample]) -> Iterator[Finding]:
    now, then = samples[-1], since(samples, STALL_SECONDS)
    if then is None or now.messages is None or then.messages is None or now.cursor is None:
        return
    held_up = now.waited_seconds > then.waited_seconds
    if now.cursor == then.cursor and now.messages > then.messages and not held_up:
        detail = f"{now.messages - then.messages:,.0f} messages and the cursor is {now.cursor:.0f}"
        yield Finding("cursor_stuck", "", detail)


def _back_pressure(samples: Sequence[Sample]) -> Iterator[Finding]:
    now, then = samples[-1], since(samples, HELD_SECONDS) or samples[0]
    full = [item for item in now.streams if item.mark and item.length >= item.mark]
    for item in full:
        detail = f"{item.length:,} entries, the high-water mark is {item.mark:,}"
        yield Finding("back_pressure", item.name, detail)
    waited = now.waited_seconds - then.waited_seconds
    if waited >= WAITED_SECONDS and not full and now.streams:
        detail = f"reading was held up for {waited:.0f} s"
        yield Finding("back_pressure", now.streams[0].name, detail)


def _stalls(samples: Sequence[Sample], stream: StreamSample, limits: Limits) -> Iterator[Finding]:
    live = stream.name in limits.live_streams
    then = since(samples, STALL_SECONDS if live else HISTORY_STALL_SECONDS)
    old = then.stream(stream.name) if then else None
    if then is None or old is None:
        return
    positions = {group.name: group for group in old.groups}
    for group in stream.groups:
        before = positions.get(group.name)
        if before and before.lag and group.lag and before.position == group.position:
            seconds = samples[-1].moment - then.moment
            detail = f"{group.lag:,} wait for {group.name}, none delivered for {seconds:.0f} s"
            yield Finding("consumer_stall", stream.name, detail)


def _removed(samples: Sequence[Sample], stream: StreamSample) -> Iterator[Finding]:
    for group in stream.groups:
        first, pending = stream.first_id, group.oldest_pending
        if pending and (first is None or _number(pending) < _number(first)):
            yield Finding("pending_without_body", stream.name, f"{pending} of {group.name}")
        lost = [_removed_unread(sample.stream(stream.name), group.name) for sample in samples]
        known = [count for count in lost if count is not None]
        if known and lost[-1] is not None and known[-1] > known[0]:
            detail = f"{known[-1] - known[0]:,} that {group.name} had not read"
            yield Finding("unread_removed", stream.name, detail)


def _removed_unread(stream: StreamSample | None, group: str) -> int | None:
    """Return how many entries more were removed than the group was given, at least."""
    found = next((item for item in stream.groups if item.name == group), None) if stream else None
    if stream is None or found is None or found.read is None:
        return None
    return max(0, stream.added - stream.length - found.read)


def _number(entry_id: str) -> tuple[int, int]:
    ms, _, sequence = entry_id.partition("-")
    return int(ms), int(sequence or 0)
