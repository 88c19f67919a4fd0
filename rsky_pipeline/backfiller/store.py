"""Writes of the backfiller, batched over all jobs in flight.

Outcomes go to `rsky_pipeline.backfill_repo`, events to `firehose_backfill`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Literal

import trio

from rsky_pipeline.database.bulk import transpose, unnest_sql
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.isolation import Isolation
from rsky_pipeline.database.schema import blamed_on_schema
from rsky_pipeline.database.texts import storable
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.runtime.coalescer import Coalescer
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL

_log = logging.getLogger(__name__)
GATHER_SECONDS = 0.1  # a batch of outcomes waits so long for more
MAX_TEXT_BYTES = 500  # stored of an error, a reason or a host
FULL_PAUSE_SECONDS = 0.25
MAX_BATCHES = 4  # batches of different repos that share one append
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

_Batch = tuple[Sequence[Entry], str | None]  # entries, and the history that they must be part of
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


def outcome_writer(link: Link[Database]) -> Coalescer[RepoOutcome, None]:
    """Return a coalescer; its calls return once the outcome, or a newer one of its repo, is stored.

    An outcome that PostgreSQL rejects is logged and dropped, so that it cannot block the others of
    its batch. One that hits outcomes of many repos in a row is waited for, with a bound.
    """
    isolation: Isolation[RepoOutcome] = Isolation(lambda outcome: outcome.did)
    return Coalescer(
        lambda outcomes: link.retry(lambda database: write_outcomes(database, outcomes, isolation)),
        gather_seconds=GATHER_SECONDS,
    )


def write_outcomes(
    database: Database, outcomes: Sequence[RepoOutcome], isolation: Isolation[RepoOutcome]
) -> list[None]:
    """Upsert outcomes, the last one of each repo; logs those that PostgreSQL rejects."""
    newest = {outcome.did: outcome for outcome in outcomes}
    ordered = [newest[did] for did in sorted(newest)]
    for culprit in isolation.apply([ordered], partial(_write, database)):
        extra = {"did": culprit.entry.did, "error": culprit.message}
        _log.error("PostgreSQL rejected the outcome of a repo", extra=extra)
    return [None] * len(outcomes)


def _write(database: Database, outcomes: Sequence[RepoOutcome]) -> None:
    # The texts may quote remote input: PostgreSQL rejects some characters.
    rows = [
        (each.did, each.status, each.kind,
         *(text and storable(text, MAX_TEXT_BYTES) for text in (each.reason, each.error)), each.rev,
         each.host and storable(each.host, MAX_TEXT_BYTES), each.attempts, each.next_attempt_at,
         each.records, each.deletes, each.bytes, each.seconds)
        for each in outcomes
    ]  # fmt: skip
    with blamed_on_schema(database):
        database.execute(_WRITE, transpose(rows, len(_COLUMNS)))


class Output:
    """Appends to `firehose_backfill` for all repos in flight, held back while the stream is full.

    A batch whose reply was lost is appended again. Its events may then be in the stream twice,
    which is harmless because the indexer applies them idempotently.
    """

    def __init__(self, link: Link[Store], high_water_mark: int, metrics: BackfillerMetrics) -> None:
        self._link = link
        self._marks = {FIREHOSE_BACKFILL: high_water_mark}
        self._metrics = metrics
        self._batches = Coalescer(self._append, limit=MAX_BATCHES)

    async def append(self, entries: Sequence[Entry], history: str | None = None) -> str | None:
        """Append a batch atomically; waits for stream capacity and for Redis without a limit.

        Returns the server's history (`Store.history`). With `history`, that of the repo's batches
        so far, nothing is appended once another one has begun, and None is returned: the earlier
        batches may be lost.
        """
        return await self._batches.call((entries, history))

    async def _append(self, batches: Sequence[_Batch]) -> list[str | None]:
        while (histories := await self._link.retry(partial(self._write, batches))) is None:
            self._metrics.backpressure.inc()
            await trio.sleep(FULL_PAUSE_SECONDS)
        return histories

    def _write(self, batches: Sequence[_Batch], store: Store) -> list[str | None] | None:
        """Append the batches whose history goes on; returns None if a stream is full."""
        # Asked before: a history that begins in between is then taken for lost, not for kept.
        history = store.history()
        goes_on = [expected in {None, history} for _, expected in batches]
        entries = [entry for (part, _), one in zip(batches, goes_on, strict=True) if one
                   for entry in part]  # fmt: skip
        if entries and append(store, entries, high_water_marks=self._marks).status != "appended":
            return None
        return [history if one else None for one in goes_on]
