"""What becomes of a file."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LOADED = "loaded"  # every record is in the tables
CURRENT = "current"  # what is stored is as new as the file
FAILED = "failed"  # nothing of it counts as loaded; `reason` says why


class LoadFailed(Exception):
    """A file that cannot be loaded; `reason` is a short stable code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class Outcome:
    """The result of one file, as the worker reports it and the ledger keeps it."""

    path: str
    size: int
    mtime_ns: int
    status: str = FAILED
    did: str | None = None
    rev: str | None = None
    reason: str | None = None
    error: str | None = None
    records: int = 0  # of the wanted collections, in the file
    deletes: int = 0  # rows that the repo no longer holds
    refused: dict[str, int] = field(default_factory=dict)  # records by reason

    def fail(self, reason: str, message: str) -> None:
        """Note why nothing came of it."""
        self.status, self.reason, self.error = FAILED, reason, message[:500]


@dataclass(slots=True)
class Summary:
    """All outcomes together."""

    files: Counter[str] = field(default_factory=Counter)  # by status
    reasons: Counter[str] = field(default_factory=Counter)  # of failed files
    refused: Counter[str] = field(default_factory=Counter)  # records by reason
    records: int = 0
    deletes: int = 0
    seconds: float = 0.0
    examples: list[Outcome] = field(default_factory=list)  # of failed files

    def add(self, outcome: Outcome) -> None:
        """Count a file."""
        self.files[outcome.status] += 1
        self.refused.update(outcome.refused)
        if outcome.status == LOADED:
            self.records += outcome.records
            self.deletes += outcome.deletes
        elif outcome.status == FAILED:
            self.reasons[outcome.reason or "unknown"] += 1
            if len(self.examples) < 20:
                self.examples.append(outcome)

    def document(self, skipped: Mapping[str, int]) -> dict[str, Any]:
        """Return it as JSON; `skipped` are files that were settled by an earlier run."""
        return {
            "files": {
                **{status: self.files[status] for status in (LOADED, CURRENT, FAILED)},
                "skipped": sum(skipped.values()),
                "skipped_failed": skipped.get(FAILED, 0),
            },
            "failed_by_reason": dict(self.reasons.most_common()),
            "records": self.records,
            "records_refused_by_reason": dict(self.refused.most_common()),
            "rows_deleted": self.deletes,
            "seconds": round(self.seconds, 1),
            "records_per_second": round(self.records / self.seconds) if self.seconds else None,
            "examples": [
                {"path": each.path, "reason": each.reason, "error": each.error}
                for each in self.examples
            ],
        }
