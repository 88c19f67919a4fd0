"""Checks of the streams over the window: lengths, rates, lag, age, pending, dead letters, memory.

Pure: everything was measured before.
"""

from collections.abc import Iterator, Mapping

from rsky_pipeline.configuration.expectations import Band
from rsky_pipeline.operations.inspection import Inspection
from rsky_pipeline.operations.stream_figures import GroupFigures, Measurement, StreamFigures
from rsky_pipeline.operations.verification.report import Check, Status, passed, skipped
from rsky_pipeline.streams.names import FIREHOSE_LIVE, LABEL_LIVE

LIVE = (FIREHOSE_LIVE, LABEL_LIVE)
NEAR_THE_MARK = 0.8
STALL_SECONDS = 10.0  # without a delivery, while live entries wait
OLD_SECONDS, TOO_OLD_SECONDS = 60.0, 600.0  # of live entries; history may wait
GROWING_ENTRIES = 1_000  # a backlog that grew by less is only traffic
MEMORY_WARN, MEMORY_FAIL = 0.75, 0.85  # producers stop at 0.9, see streams/append.lua
_CLEAN = (
    "`rsky-pipeline streams inspect {0}` shows it, `rsky-pipeline streams purge {0} --type repo`"
)


def check_lengths(measured: Measurement) -> Iterator[Check]:
    """Check every stream against its high-water mark."""
    for stream in measured.streams:
        if not stream.mark:
            continue
        name, length = f"length:{stream.name}", stream.report.length
        figure = f"{length:,} entries, the high-water mark is {stream.mark:,}"
        if length >= stream.mark:
            remedy = "its producer waits: see rate and lag of the consumers, add workers"
            yield Check(name, "fail" if stream.name in LIVE else "warn", figure, remedy, length)
        elif length >= stream.mark * NEAR_THE_MARK:
            yield Check(name, "warn", figure, "see whether consumers keep up", length)
        else:
            yield passed(name, figure, length)


def check_rate(measured: Measurement, band: Band, lag_seconds: float | None) -> Check:
    """Check events added to the live stream a second against what is expected.

    `lag_seconds` is how old events are when they are written: old ones are read faster.
    """
    name, rate = "rate:firehose_live", measured.stream(FIREHOSE_LIVE).rate_in
    if band.why_not:
        shown = "" if rate is None else f" ({rate:,.1f}/s)"
        return skipped(name, band.why_not + shown)
    if rate is None:
        return skipped(name, "not known: the stream was begun anew, or Redis is older than 7")
    expected = f"expected {band.low:,.0f} to {band.high:,.0f}"
    figure = f"{rate:,.1f} events/s over {measured.seconds:.0f} s, {expected}"
    if rate > band.high and lag_seconds is not None and lag_seconds > OLD_SECONDS:
        return Check(name, "warn", f"{figure}; it catches up with {lag_seconds:,.0f} s",
                     "wait until it has caught up", rate)  # fmt: skip
    if rate > band.high:
        return Check(name, "fail", figure,
                     "see what is in the stream: `rsky-pipeline streams inspect firehose_live`",
                     rate)  # fmt: skip
    if rate < band.low:
        return Check(name, "fail", figure,
                     "see whether the ingester is connected and writes: `rsky-pipeline status`",
                     rate)  # fmt: skip
    return passed(name, figure, rate)


def check_pollution(sample: Inspection, misplaced: float) -> Check:
    """Check that nothing is in the live stream that does not belong there.

    `misplaced` is how many such entries indexers met in the window.
    """
    name, found = f"pollution:{sample.stream}", sample.polluting + int(misplaced)
    if found:
        figure = (
            f"{sample.polluting:,} of the newest {sample.sampled:,} entries are repo events, and "
            f"indexers met {misplaced:,.0f} in the window"
        )
        remedy = f"find and stop what writes them, then clean: {_CLEAN.format(sample.stream)}"
        return Check(name, "fail", figure, remedy, found)
    return passed(name, f"no repo event among the newest {sample.sampled:,} entries, indexers "
                  "met none", 0)  # fmt: skip


def check_balance(before: Mapping[str, int], measured: Measurement) -> Iterator[Check]:
    """Compare what came in with what went out; `before` is what waited when the window began."""
    for stream in measured.streams:
        name = f"balance:{stream.name}"
        if not stream.groups:
            yield skipped(name, "nobody consumes it yet")
            continue
        group = max(stream.groups, key=_waiting)
        grown = _waiting(group) - before.get(stream.name, 0)
        came = (stream.rate_in or 0.0) * measured.seconds
        rates = f"in {_rate(stream.rate_in)}, out {_rate(group.rate_out)}"
        figure = f"{rates}, {_waiting(group):,} wait"
        if came + grown > 0 and grown > max(GROWING_ENTRIES, 0.1 * came):
            yield Check(name, "warn", f"{figure}, {grown:,} more than when the window began",
                        "consumers do not keep up: add workers, or wait for the peak to end",
                        grown)  # fmt: skip
        else:
            yield passed(name, figure, _waiting(group))


def check_stalls(before: Measurement, measured: Measurement) -> Iterator[Check]:
    """Check that entries which wait are delivered to somebody, and that none is too old."""
    for old, stream in zip(before.streams, measured.streams, strict=True):
        for group in stream.groups:
            then = old.report.group(group.report.name)
            position = then.last_delivered_id if then else None
            yield _stall(stream, group, position, measured.seconds)
            yield _age(stream, group)


def _stall(
    stream: StreamFigures, group: GroupFigures, position: str | None, seconds: float
) -> Check:
    """History may wait while live events go first, and anything for the time of one batch."""
    name, report = f"delivery:{stream.name}", group.report
    if report.lag and report.last_delivered_id == position:
        certain = stream.name in LIVE and seconds >= STALL_SECONDS
        status: Status = "fail" if certain else "warn"
        return Check(name, status, f"{report.lag:,} entries wait and none was delivered to "
                     f"{report.name} in the window",
                     "see whether its workers run and their stores answer; "
                     "`rsky-pipeline streams groups repair`", report.lag)  # fmt: skip
    return passed(name, f"{report.name} is given entries, {report.lag:,} wait", report.lag)


def _age(stream: StreamFigures, group: GroupFigures) -> Check:
    name, age = f"oldest:{stream.name}", group.report.oldest_unacked_age_seconds
    figure = f"the oldest entry that {group.report.name} has not finished is {age:,.1f} s old"
    if stream.name in LIVE and age > TOO_OLD_SECONDS:
        return Check(name, "fail", figure, "see rate, lag and errors of its workers", age)
    if age > (OLD_SECONDS if stream.name in LIVE else 24 * 3600.0):
        return Check(name, "warn", figure, "see rate, lag and errors of its workers", age)
    return passed(name, figure, age)


def check_dead_letters(before: Measurement, measured: Measurement) -> Iterator[Check]:
    """Check how many entries could not be processed, and whether more came in the window."""
    for old, stream in zip(before.streams, measured.streams, strict=True):
        name, count = f"dead_letters:{stream.name}", stream.dead_letters
        more = count - old.dead_letters
        if count:
            figure = f"{count:,} dead letters, {max(0, more):,} more in the window"
            remedy = f"look at their reasons: `rsky-pipeline dlq list {stream.name}`"
            yield Check(name, "warn", figure, remedy, count)
        else:
            yield passed(name, "none", 0)


def check_memory(measured: Measurement) -> Iterator[Check]:
    """Check the memory of Redis, what it does when it is full, and what the marks may ask for."""
    memory = measured.memory
    if memory.policy not in ("", "noeviction"):
        remedy = "a queue must not be evicted: CONFIG SET maxmemory-policy noeviction"
        yield Check("eviction", "fail", f"maxmemory-policy is {memory.policy}", remedy)
    if memory.share is None:
        yield passed("memory", f"{memory.used / 1e6:,.1f} MB used, no maxmemory is set",
                     memory.used)  # fmt: skip
    else:
        figure = f"{memory.used / 1e6:,.1f} of {memory.limit / 1e6:,.1f} MB ({memory.share:.0%})"
        remedy = "producers stop at 90%: raise maxmemory, lower the high-water marks, or trim"
        status: Status = "fail" if memory.share >= MEMORY_FAIL else "warn"
        if memory.share >= MEMORY_WARN:
            yield Check("memory", status, figure, remedy, memory.share)
        else:
            yield passed("memory", figure, memory.share)
    for advice in measured.advice():
        name = f"capacity:{advice.stream}"
        if advice.bytes_each is None:
            yield skipped(name, advice.text)
        elif advice.mark and advice.fitting_mark is not None and advice.mark > advice.fitting_mark:
            yield Check(name, "warn", advice.text,
                        f"a mark of {advice.fitting_mark:,} fits", advice.fitting_mark)  # fmt: skip
        else:
            yield passed(name, advice.text, advice.mark_hours)


def _waiting(group: GroupFigures) -> int:
    return group.report.lag + group.report.pending


def _rate(rate: float | None) -> str:
    return "?" if rate is None else f"{rate:,.1f}/s"
