"""Outcomes of files: during a load, and in `rsky_pipeline.load_file` for later runs."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.isolation import apply_isolated
from rsky_pipeline.database.texts import storable

_log = logging.getLogger(__name__)
LOADED = "loaded"  # every record is in the tables
CURRENT = "current"  # the stored rev is the file's or a newer one
FAILED = "failed"  # the file counts as not loaded; see `reason`
MAX_TEXT_BYTES = 500  # stored of an error

_KNOWN = """
SELECT path, size, mtime_ns, status FROM rsky_pipeline.load_file WHERE path = ANY(%b::text[])
"""
_NOTE = """
INSERT INTO rsky_pipeline.load_file
    (path, size, mtime_ns, status, did, rev, reason, error, records, refused, updated_at)
SELECT n.*, now() FROM unnest(%b::text[], %b::bigint[], %b::bigint[], %b::text[], %b::text[],
    %b::text[], %b::text[], %b::text[], %b::bigint[], %b::jsonb[])
    AS n(path, size, mtime_ns, status, did, rev, reason, error, records, refused)
ON CONFLICT (path) DO UPDATE SET
    size = EXCLUDED.size, mtime_ns = EXCLUDED.mtime_ns, status = EXCLUDED.status,
    did = EXCLUDED.did, rev = EXCLUDED.rev, reason = EXCLUDED.reason, error = EXCLUDED.error,
    records = EXCLUDED.records, refused = EXCLUDED.refused, updated_at = EXCLUDED.updated_at
"""


@dataclass(frozen=True, slots=True)
class CarFile:
    """A file as it was found; another size or time means another content."""

    path: str
    size: int
    mtime_ns: int


@dataclass(slots=True)
class FileOutcome:
    """The result of one file, as the worker reports it and the table keeps it."""

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
class LoadSummary:
    """All outcomes together."""

    files: Counter[str] = field(default_factory=Counter)  # by status
    reasons: Counter[str] = field(default_factory=Counter)  # of failed files
    refused: Counter[str] = field(default_factory=Counter)  # records by reason
    records: int = 0
    deletes: int = 0
    seconds: float = 0.0
    examples: list[FileOutcome] = field(default_factory=list)  # of failed files

    def add(self, outcome: FileOutcome) -> None:
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


def finished_before(database: Database, files: Sequence[CarFile]) -> dict[str, str]:
    """Return path and status of files that an earlier run finished, if they did not change."""
    rows = database.query(_KNOWN, ([file.path for file in files],))
    known = {path: (size, mtime_ns, status) for path, size, mtime_ns, status in rows}
    found: dict[str, str] = {}
    for file in files:
        size, mtime_ns, status = known.get(file.path, (None, None, ""))
        if (size, mtime_ns) == (file.size, file.mtime_ns):
            found[file.path] = status
    return found


def note(database: Database, outcomes: Sequence[FileOutcome]) -> None:
    """Keep outcomes. One that PostgreSQL refuses holds up no other: its file is loaded again."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.path)
    for culprit in apply_isolated(ordered, lambda some: _note(database, some)):
        extra = {"path": culprit.entry.path, "error": culprit.message}
        _log.error("outcome of a file cannot be stored", extra=extra)


def _note(database: Database, outcomes: Sequence[FileOutcome]) -> None:
    rows = [
        (
            each.path, each.size, each.mtime_ns, each.status, each.did, each.rev, each.reason,
            None if each.error is None else storable(each.error, MAX_TEXT_BYTES), each.records,
            orjson.dumps(each.refused).decode() if each.refused else None,
        )
        for each in outcomes
    ]  # fmt: skip
    if rows:
        database.execute(_NOTE, [list(column) for column in zip(*rows, strict=True)])
