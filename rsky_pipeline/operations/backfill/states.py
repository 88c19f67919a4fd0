"""`rsky_pipeline.backfill_repo` for commands: counts, rates, and what to try again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rsky_pipeline.database.connection import Database

_COUNTS = """
SELECT status, COALESCE(reason, ''), count(*), COALESCE(sum(records), 0)
FROM rsky_pipeline.backfill_repo GROUP BY 1, 2
"""
_RATE = """
SELECT count(*), COALESCE(sum(records), 0),
    COALESCE(extract(epoch FROM now() - min(updated_at)), 0)::float8
FROM rsky_pipeline.backfill_repo
WHERE status = 'done' AND updated_at > now() - make_interval(secs => %s)
"""
_FAILED = """
SELECT did FROM rsky_pipeline.backfill_repo
WHERE status = ANY(%b::text[]) AND (%s::text IS NULL OR reason = %s)
    AND (%s OR did = ANY(%b::text[]))
ORDER BY did
"""
_CANCEL = """
INSERT INTO rsky_pipeline.backfill_repo (did, status) SELECT n.did, 'cancelled'
FROM unnest(%b::text[]) AS n(did)
ON CONFLICT (did) DO UPDATE
SET status = EXCLUDED.status, kind = NULL, reason = NULL, error = NULL, next_attempt_at = NULL,
    updated_at = now()
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the table says: repos by status and reason, and how many were done lately."""

    by_status: dict[str, int]
    by_reason: dict[str, dict[str, int]]  # status -> reason -> repos
    records: int
    repos_per_second: float
    records_per_second: float


def stored(database: Database, window_seconds: float) -> Stored:
    """Return what is stored; rates are over the last so many seconds. Raises DatabaseError."""
    by_status: dict[str, int] = {}
    by_reason: dict[str, dict[str, int]] = {}
    total = 0
    for status, reason, count, records in database.query(_COUNTS):
        by_status[status] = by_status.get(status, 0) + count
        if reason:
            by_reason.setdefault(status, {})[reason] = count
        total += int(records)
    ((repos, lately, seconds),) = database.query(_RATE, (window_seconds,))
    span = max(float(seconds), 1.0)
    rates: tuple[float, float] = (repos / span, float(lately) / span)
    return Stored(by_status, by_reason, total, *rates)


def unsuccessful(database: Database, reason: str | None, dids: Sequence[str]) -> list[str]:
    """Return accounts whose repo was not brought in; without a choice only those that failed.

    Those that are not available (deactivated, gone) or were cancelled are asked for by a reason or
    by name.
    """
    chosen = ["failed"]
    if reason is not None or dids:
        chosen += ["unavailable", "cancelled"]
    parameters: Sequence[Any] = (chosen, reason, reason, not dids, list(dids))
    return [row[0] for row in database.query(_FAILED, parameters)]


def mark_cancelled(database: Database, dids: Sequence[str]) -> None:
    """Note that repos were taken out of the queue."""
    if dids:
        database.execute(_CANCEL, (sorted(set(dids)),))
