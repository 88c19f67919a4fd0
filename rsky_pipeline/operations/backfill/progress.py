"""Progress of the backfill: streams, postponed jobs, stored outcomes and workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.ingester.listing.enumeration import LIST_REPOS, ListingProgress
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, REPO_STREAMS, dead_letters
from rsky_pipeline.streams.waiting import count_waiting

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
class StoredOutcomes:
    """Figures of `backfill_repo`: repos by status and reason, and recent rates."""

    by_status: dict[str, int]
    by_reason: dict[str, dict[str, int]]  # status -> reason -> repos
    records: int
    repos_per_second: float
    records_per_second: float


@dataclass(frozen=True, slots=True)
class RepoQueues:
    """Repo jobs in Redis."""

    queued: dict[str, int]  # by stream: nobody has read them
    running: int  # a worker holds them
    waiting: int  # for another attempt
    dead_letters: int
    records_queued: int  # entries of firehose_backfill that are not indexed yet
    listed: int = 0  # repos by the present rounds of the relays' listings
    listing_ended: bool | None = None  # None where no repos are listed

    @property
    def left(self) -> int:
        """Repos that are not settled."""
        return sum(self.queued.values()) + self.running + self.waiting


def look(store: Store, settings: Settings) -> RepoQueues:
    """Look at the streams once. Raises StoreUnavailableError and StoreRejectedError."""
    queued: dict[str, int] = {}
    running = letters = 0
    for name in REPO_STREAMS:
        report = inspect(store, name)
        group = report.group(settings.backfiller_group)
        queued[name] = group.lag if group else report.length
        running += group.pending if group else 0
        letters += int(store.call("XLEN", dead_letters(name)))
    output = inspect(store, FIREHOSE_BACKFILL)
    indexer = output.group(settings.indexer_group)
    unindexed = indexer.lag + indexer.pending if indexer else output.length
    listed, ended = _listings(store, settings)
    waiting = count_waiting(store)
    return RepoQueues(queued, running, waiting, letters, unindexed, listed, ended)


def _listings(store: Store, settings: Settings) -> tuple[int, bool | None]:
    """Return how many repos the relays have listed, and whether all of their listings ended."""
    if not settings.enumerate_repos:
        return 0, None
    names = (
        settings.enumeration_collections
        if settings.enumeration_source == "by_collection"
        else (LIST_REPOS,)
    )
    found = [
        ListingProgress.load(store, name, relay.key) for relay in settings.relays for name in names
    ]
    if not any(each.began for each in found):
        return 0, None  # by none that this Redis knows of
    ended = all(each.began and not each.running for each in found)
    return sum(each.repos for each in found), ended


def document(
    queues: RepoQueues, stored: StoredOutcomes | None, workers: list[dict[str, Any]], window: float
) -> dict[str, Any]:
    """Return everything as JSON; `stored` is None where PostgreSQL cannot be asked."""
    rate = stored.repos_per_second if stored else 0.0
    queue_seconds = round(queues.left / rate) if rate and queues.left else None
    found: dict[str, Any] = {
        "queued": queues.queued, "running": queues.running, "waiting": queues.waiting,
        "left": queues.left, "dead_letters": queues.dead_letters,
        "records_not_indexed": queues.records_queued, "window_seconds": window,
        # While relays list further repos, the queue is a part of the work.
        "eta_seconds": queue_seconds if queues.listing_ended is not False else None,
        "queue_seconds": queue_seconds,
        "listing": {"repos": queues.listed, "ended": queues.listing_ended},
        "workers": workers, "repos": None,
    }  # fmt: skip
    if stored is not None:
        found["repos"] = {
            **{each: stored.by_status.get(each, 0)
               for each in ("done", "waiting", "unavailable", "failed", "cancelled")},
            "by_reason": stored.by_reason,
        }  # fmt: skip
        found["records"] = stored.records
        found["repos_per_second"] = round(rate, 2)
        found["records_per_second"] = round(stored.records_per_second, 1)
    return found


def stored(database: Database, window_seconds: float) -> StoredOutcomes:
    """Return counts of outcomes, and rates over the last so many seconds. Raises DatabaseError."""
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
    return StoredOutcomes(by_status, by_reason, total, *rates)


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
