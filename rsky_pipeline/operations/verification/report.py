"""What a verification says. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["pass", "warn", "fail", "skip"]
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what was found, and what to do about it unless it is good.

    `name` is stable, `KIND` or `KIND:SUBJECT`; `value` is the figure that decided, for programs.
    """

    name: str
    status: Status
    figure: str
    remedy: str = ""
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one verification; `time` is the end of its window, in seconds since 1970."""

    time: float
    window_seconds: float
    checks: tuple[Check, ...]

    @property
    def status(self) -> Status:
        """Return the worst status: fail, warn, or pass."""
        found = {check.status for check in self.checks}
        return "fail" if "fail" in found else "warn" if "warn" in found else "pass"

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings are no failure."""
        return self.status != "fail"

    def of(self, status: Status) -> list[Check]:
        """Return the checks with a status."""
        return [check for check in self.checks if check.status == status]

    def find(self, name: str) -> Check | None:
        """Return the check with a name, or None."""
        return next((check for check in self.checks if check.name == name), None)

    def document(self) -> dict[str, Any]:
        """Return it as JSON; fields are only added while `schema_version` stays the same."""
        return {
            "schema_version": SCHEMA_VERSION,
            "status": self.status,
            "time": round(self.time, 3),
            "window_seconds": round(self.window_seconds, 3),
            "counts": {
                status: len(self.of(status)) for status in ("pass", "warn", "fail", "skip")
            },
            "checks": [
                {
                    "name": check.name, "status": check.status, "figure": check.figure,
                    "remedy": check.remedy, "value": check.value,
                }
                for check in self.checks
            ],
        }  # fmt: skip


def passed(name: str, figure: str, value: float | None = None) -> Check:
    """Return a check that is good."""
    return Check(name, "pass", figure, value=value)


def skipped(name: str, why: str) -> Check:
    """Return a check that could not or need not be made."""
    return Check(name, "skip", why)


def worst(name: str, checks: Iterable[Check]) -> Check:
    """Return the worst of several checks under one name, the first of equals."""
    order: tuple[Status, ...] = ("fail", "warn", "pass", "skip")
    found = min(checks, key=lambda check: order.index(check.status))
    return Check(name, found.status, found.figure, found.remedy, found.value)
