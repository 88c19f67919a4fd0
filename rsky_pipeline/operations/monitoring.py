"""Watching a pipeline for a while: verification sampled, figures kept, regressions found."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.operations.verification.database import check_database
from rsky_pipeline.operations.verification.relay import ask_relays, check_relays
from rsky_pipeline.operations.verification.report import Check, Report
from rsky_pipeline.operations.verification.run import Look, compare, look
from rsky_pipeline.streams.names import FIREHOSE_LIVE

# What stands outside of the pipeline is asked less often: at the first sample, each so many
# samples, and at the last one.
OUTSIDE_EVERY = 10
LASTING = 2  # samples in a row that a check fails before it counts: one may be a moment's peak
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
class Failure:
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
    """The samples of one period, and what follows from them. `ended_early` if somebody stopped."""

    began: float  # seconds since 1970
    every: float
    reports: list[Report] = field(default_factory=list)
    ended_early: bool = False

    @property
    def seconds(self) -> float:
        """How long it has been watched."""
        return self.reports[-1].time - self.began if self.reports else 0.0

    def figures(self, name: str) -> list[float]:
        """Return the values of a check, in order, samples without one left out."""
        found = [report.find(name) for report in self.reports]
        return [check.value for check in found if check is not None and check.value is not None]

    def failures(self) -> list[Failure]:
        """Return every check that failed at least once."""
        names = dict.fromkeys(check.name for report in self.reports for check in report.of("fail"))
        return [self._failure(name) for name in names]

    def regressions(self) -> list[Failure]:
        """Return the failures that lasted, or that there were at the end."""
        last = {check.name for check in self.reports[-1].of("fail")} if self.reports else set()
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

    def _failure(self, name: str) -> Failure:
        found: list[tuple[float, Check]] = []
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
        return Failure(name, first, last, len(found), longest, check.figure, check.remedy)


def monitor(
    settings: Settings,
    seconds: float,
    every: float,
    *,
    roles: Sequence[str] = ROLE_NAMES,
    on_sample: Callable[[Monitoring], None] = lambda so_far: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Monitoring:
    """Watch for `seconds`, a sample `every` so many; each covers the time since the one before.

    KeyboardInterrupt ends it early, with what there is. Blocking, and not for use within a trio
    loop; the settings are those of `verify`.
    """
    result = Monitoring(time.time(), every)
    number = max(1, round(seconds / every))
    began, before = time.monotonic(), look(settings)
    try:
        for count in range(1, number + 1):
            sleep(max(0.0, began + count * every - time.monotonic()))
            after = look(settings, before)
            outside = count in (1, number) or count % OUTSIDE_EVERY == 0
            checks = _checks(settings, before, after, roles, outside=outside)
            result.reports.append(Report(time.time(), after.moment - before.moment, checks))
            before = after
            on_sample(result)
    except KeyboardInterrupt:
        result.ended_early = True
    return result


def _checks(
    settings: Settings, before: Look, after: Look, roles: Sequence[str], *, outside: bool
) -> tuple[Check, ...]:
    checks = list(compare(settings, before, after, roles))
    rate = _live_rate(after)
    if rate is not None:  # also where no band is expected
        checks = [_with_value(check, rate) for check in checks]
    if outside:
        checks += check_database(settings)
        checks += check_relays(ask_relays(settings)) if "ingester" in roles else ()
    return tuple(checks)


def _live_rate(after: Look) -> float | None:
    return after.measured.stream(FIREHOSE_LIVE).rate_in if after.measured else None


def _with_value(check: Check, rate: float) -> Check:
    if check.name != f"rate:{FIREHOSE_LIVE}" or check.value is not None:
        return check
    return Check(check.name, check.status, check.figure, check.remedy, rate)
