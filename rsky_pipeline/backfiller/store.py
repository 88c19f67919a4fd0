"""Batched queries of the backfiller, and writes of outcomes to `rsky_pipeline.backfill_repo`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Literal

from rsky_pipeline.backfiller.coalescer import Coalescer
from rsky_pipeline.database.bulk import transpose, unnest_sql
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.isolation import Culprit, Isolation
from rsky_pipeline.database.texts import storable
from rsky_pipeline.repos.repo import RepoPaths
from rsky_pipeline.repos.stored import StoredRevs, absent_paths, have_older, stored_revs
from rsky_pipeline.runtime.link import Link

_log = logging.getLogger(__name__)
GATHER_SECONDS = 0.1  # a batch of outcomes waits so long for more
MAX_TEXT_BYTES = 500  # stored of an error, a reason or a host
_COLUMNS = (
    ("did", "text"), ("status", "text"), ("kind", "text"), ("reason", "text"), ("error", "text"),
    ("rev", "text"), ("host", "text"), ("attempts", "integer"), ("next_attempt_at", "timestamptz"),
    ("records", "bigint"), ("deletes", "bigint"), ("bytes", "bigint"), ("seconds", "real"),
)  # fmt: skip
# COALESCE: a failed attempt has no rev and no counts, and must keep those of an earlier success.
_WRITE = f"""
INSERT INTO rsky_pipeline.backfill_repo AS stored
    ({", ".join(name for name, _ in _COLUMNS)}, updated_at)
SELECT incoming.*, now() FROM {unnest_sql(_COLUMNS)}
ON CONFLICT (did) DO UPDATE SET
    status = EXCLUDED.status, kind = EXCLUDED.kind, reason = EXCLUDED.reason,
    error = EXCLUDED.error, attempts = EXCLUDED.attempts,
    next_attempt_at = EXCLUDED.next_attempt_at, seconds = EXCLUDED.seconds,
    rev = COALESCE(EXCLUDED.rev, stored.rev), host = COALESCE(EXCLUDED.host, stored.host),
    records = COALESCE(EXCLUDED.records, stored.records),
    deletes = COALESCE(EXCLUDED.deletes, stored.deletes),
    bytes = COALESCE(EXCLUDED.bytes, stored.bytes), updated_at = EXCLUDED.updated_at
"""

OutcomeStatus = Literal["done", "waiting", "unavailable", "failed"]


@dataclass(frozen=True, slots=True)
class RepoOutcome:
    """How an attempt at a repo ended; a row of `rsky_pipeline.backfill_repo`."""

    did: str
    status: OutcomeStatus
    kind: str | None = None
    reason: str | None = None
    error: str | None = None
    rev: str | None = None
    host: str | None = None
    attempts: int = 0
    next_attempt_at: datetime | None = None
    records: int | None = None
    deletes: int | None = None
    bytes: int | None = None
    seconds: float | None = None


class RepoLookup:
    """Queries about repos, batched over concurrent attempts. All retry until PostgreSQL answers."""

    def __init__(self, link: Link[Database]) -> None:
        self._link = link
        self._stored = Coalescer(self._look_up)
        self._older = Coalescer(self._look_for_older)

    async def stored(self, did: str) -> StoredRevs:
        """Return the stored revs of a repo."""
        return await self._stored.call(did)

    async def has_older(self, did: str, rev: str) -> bool:
        """Return whether an account has rows older than a rev."""
        return await self._older.call((did, rev))

    async def absent(self, paths: RepoPaths, after: str) -> list[str]:
        """Return paths of older rows that are absent from a repo; see `stored.absent_paths`."""
        return await self._link.retry(lambda database: absent_paths(database, paths, after))

    async def _look_up(self, dids: Sequence[str]) -> list[StoredRevs]:
        return await self._link.retry(lambda database: stored_revs(database, dids))

    async def _look_for_older(self, repos: Sequence[tuple[str, str]]) -> list[bool]:
        return await self._link.retry(lambda database: have_older(database, repos))


class BackfillStore:
    """Writes outcomes in batches; the caller of `store` waits until its outcome is committed."""

    def __init__(self, link: Link[Database]) -> None:
        self._link = link
        self._isolation: Isolation[RepoOutcome] = Isolation(lambda outcome: outcome.did)
        self._outcomes = Coalescer(self._write, gather_seconds=GATHER_SECONDS)

    async def store(self, outcome: RepoOutcome) -> None:
        """Return once the outcome, or a newer one of the same repo, is committed.

        An outcome that PostgreSQL rejects is logged and dropped, so that it cannot block the others
        of its batch. One that hits outcomes of many repos in a row is waited for, with a bound.
        """
        await self._outcomes.call(outcome)

    async def _write(self, outcomes: Sequence[RepoOutcome]) -> Sequence[None]:
        newest = list({outcome.did: outcome for outcome in outcomes}.values())
        write = partial(write_outcomes, outcomes=newest, isolation=self._isolation)
        for culprit in await self._link.retry(write):
            extra = {"did": culprit.entry.did, "error": culprit.message}
            _log.error("PostgreSQL rejected the outcome of a repo", extra=extra)
        return [None] * len(outcomes)


def write_outcomes(
    database: Database, outcomes: Sequence[RepoOutcome], isolation: Isolation[RepoOutcome]
) -> list[Culprit[RepoOutcome]]:
    """Upsert outcomes, at most one per repo; returns those that PostgreSQL rejected."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.did)
    return isolation.apply([ordered], partial(_write, database))


def _write(database: Database, outcomes: Sequence[RepoOutcome]) -> None:
    rows = [
        (each.did, each.status, each.kind, _bounded(each.reason), _bounded(each.error), each.rev,
         _bounded(each.host), each.attempts, each.next_attempt_at, each.records, each.deletes,
         each.bytes, each.seconds)
        for each in outcomes
    ]  # fmt: skip
    database.execute(_WRITE, transpose(rows, len(_COLUMNS)))


def _bounded(text: str | None) -> str | None:
    """Truncate a text and strip characters that PostgreSQL rejects: it may quote remote input."""
    return None if text is None else storable(text, MAX_TEXT_BYTES)
