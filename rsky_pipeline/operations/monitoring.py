"""Watching a pipeline for a while: verification sampled, figures kept, regressions found.

`markdown` is the report for people.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.health.rules import RuleVerdict, Status
from rsky_pipeline.operations.verification.run import (
    VerificationReport,
    check_outside,
    compare,
    look,
)

# Systems outside of the pipeline are checked less often: at the first sample, at every
# OUTSIDE_EVERY-th, and at the last.
OUTSIDE_EVERY = 10
LASTING = 2  # consecutive failing samples before a check counts as failed: one may be a peak
# The figures that are kept, by the check whose value they are.
FIGURES = {
    "rate:firehose_live": "live events/s",
    "length:firehose_live": "firehose_live",
    "length:firehose_backfill": "firehose_backfill",
    "oldest:firehose_live": "oldest live entry, s",
    "latency": "event to row, s",
    "backfill": "repos finished",
}


@dataclass(frozen=True, slots=True)
class MonitoredFailure:
    """A check that failed: when first and last (seconds since the beginning), how often."""

    name: str
    first: float
    last: float
    samples: int
    longest: int  # samples in a row
    figure: str  # of the last time
    remedy: str


@dataclass(slots=True)
class Monitoring:
    """The samples of one period and their evaluation; `ended_early` after an interrupt."""

    began: float  # seconds since 1970
    every: float
    reports: list[VerificationReport] = field(default_factory=list)
    ended_early: bool = False

    @property
    def seconds(self) -> float:
        """How long it has been watched."""
        return self.reports[-1].time - self.began if self.reports else 0.0

    def figures(self, name: str) -> list[float]:
        """Return the values of a check, in order, samples without one left out."""
        found = [report.find(name) for report in self.reports]
        return [check.value for check in found if check is not None and check.value is not None]

    def failures(self) -> list[MonitoredFailure]:
        """Return every check that failed at least once."""
        names = dict.fromkeys(check.check for report in self.reports for check in report.of("fail"))
        return [self._failure(name) for name in names]

    def regressions(self) -> list[MonitoredFailure]:
        """Return the failures that lasted, or that there were at the end."""
        last = {check.check for check in self.reports[-1].of("fail")} if self.reports else set()
        return [item for item in self.failures() if item.longest >= LASTING or item.name in last]

    @property
    def ok(self) -> bool:
        """Whether there were samples and no regression."""
        return bool(self.reports) and not self.regressions()

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "schema_version": 1,
            "ok": self.ok,
            "began": round(self.began, 3),
            "seconds": round(self.seconds, 1),
            "every_seconds": self.every,
            "ended_early": self.ended_early,
            "statuses": dict(Counter(report.status for report in self.reports)),
            "regressions": [item.name for item in self.regressions()],
            "failures": [
                {
                    "name": item.name, "first_seconds": round(item.first, 1),
                    "last_seconds": round(item.last, 1), "samples": item.samples,
                    "longest": item.longest, "figure": item.figure, "remedy": item.remedy,
                }
                for item in self.failures()
            ],
            "samples": [report.document() for report in self.reports],
        }  # fmt: skip

    def _failure(self, name: str) -> MonitoredFailure:
        found: list[tuple[float, RuleVerdict]] = []
        longest = row = 0
        for report in self.reports:
            check = report.find(name)
            failed = check is not None and check.status == "fail"
            # A check that was not made in a sample neither ends a row nor makes it longer.
            row = row + 1 if failed else row if check is None else 0
            longest = max(longest, row)
            if check is not None and failed:
                found.append((report.time - self.began, check))
        (first, _), (last, check) = found[0], found[-1]
        return MonitoredFailure(name, first, last, len(found), longest, check.figure, check.to_do)


def monitor(
    settings: Settings,
    seconds: float,
    every: float,
    *,
    roles: Sequence[str] = ROLE_NAMES,
    on_sample: Callable[[Monitoring], None] = lambda so_far: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Monitoring:
    """Sample every `every` seconds, for `seconds`; a sample covers the time since the previous one.

    KeyboardInterrupt ends it early and returns the samples so far. Blocking, not for use within a
    trio loop; the settings are those of `verify`.
    """
    result = Monitoring(time.time(), every)
    number = max(1, round(seconds / every))
    began, before = time.monotonic(), look(settings)
    try:
        for count in range(1, number + 1):
            sleep(max(0.0, began + count * every - time.monotonic()))
            after = look(settings, before)
            outside = count in (1, number) or count % OUTSIDE_EVERY == 0
            checks = compare(settings, before, after, roles)
            if outside:
                checks += check_outside(settings, roles)
            seconds = after.sample.moment - before.sample.moment
            result.reports.append(VerificationReport(time.time(), seconds, tuple(checks)))
            before = after
            on_sample(result)
    except KeyboardInterrupt:
        result.ended_early = True
    return result


_BARS = "▁▂▃▄▅▆▇█"
_SPARKS = 40  # values of a graph


def sparkline(values: Sequence[float]) -> str:
    """Draw the newest values as a small graph from 0 to the greatest."""
    shown = values[-_SPARKS:]
    top = max(shown, default=0.0)
    if top <= 0:
        return _BARS[0] * len(shown)
    return "".join(_BARS[min(7, int(8 * max(0.0, value) / top))] for value in shown)


def markdown(found: Monitoring) -> str:
    """Return the report of a finished period."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Monitoring) -> Iterator[str]:
    statuses = [report.status for report in found.reports]
    began = datetime.fromtimestamp(found.began, UTC).isoformat(timespec="seconds")
    yield "# Monitoring report"
    yield ""
    result = "passed" if found.ok else "FAILED"
    early = ", ended early" if found.ended_early else ""
    number = f"{len(statuses)} samples, one every {found.every:.0f} s"
    yield f"**{result}**: {found.seconds:,.0f} s from {began}, {number}{early}."
    kinds: tuple[Status, ...] = ("pass", "warn", "fail")
    counts = ", ".join(f"{statuses.count(kind)} {kind}" for kind in kinds)
    yield f"Samples: {counts}."
    yield ""
    yield "| figure | lowest | mean | highest | last | |"
    yield "|---|---:|---:|---:|---:|---|"
    for name, meaning in FIGURES.items():
        values = found.figures(name)
        if values:
            numbers = (min(values), sum(values) / len(values), max(values), values[-1])
            cells = " | ".join(f"{number:,.1f}" for number in numbers)
            yield f"| {meaning} | {cells} | {sparkline(values)} |"
    yield from _failures("Regressions", found.regressions())
    passing = [item for item in found.failures() if item not in found.regressions()]
    yield from _failures("Failures that passed by themselves", passing)
    if found.reports:
        yield ""
        yield "## The last sample"
        yield ""
        yield "| status | check | figure |"
        yield "|---|---|---|"
        for check in found.reports[-1].checks:
            yield f"| {check.status} | {check.check} | {check.figure.replace('|', '/')} |"


def _failures(title: str, failures: Sequence[MonitoredFailure]) -> Iterator[str]:
    if not failures:
        return
    yield ""
    yield f"## {title}"
    yield ""
    for item in failures:
        when = f"from {item.first:,.0f} s to {item.last:,.0f} s"
        often = f"{item.samples} samples, {item.longest} in a row, {when}"
        yield f"- **{item.name}**: {often}. {item.figure}. To do: {item.remedy}."
