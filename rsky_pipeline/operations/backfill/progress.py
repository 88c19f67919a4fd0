"""How far the backfill is: the streams, what waits, the table, and the workers."""

from dataclasses import dataclass
from typing import Any

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.operations.backfill.states import Stored
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, REPO_STREAMS, dead_letters
from rsky_pipeline.streams.waiting import count_waiting


@dataclass(frozen=True, slots=True)
class Queues:
    """What Redis holds of the backfill."""

    queued: dict[str, int]  # by stream: nobody has read them
    running: int  # a worker holds them
    waiting: int  # for another attempt
    dead_letters: int
    records_queued: int  # entries of firehose_backfill that are not indexed yet

    @property
    def left(self) -> int:
        """Repos that are not settled."""
        return sum(self.queued.values()) + self.running + self.waiting


def look(store: Store, settings: Settings) -> Queues:
    """Look at the streams once. Raises StoreUnavailable and StoreRejected."""
    queued: dict[str, int] = {}
    running = buried = 0
    for name in REPO_STREAMS:
        report = inspect(store, name)
        group = report.group(settings.backfiller_group)
        queued[name] = group.lag if group else report.length
        running += group.pending if group else 0
        buried += int(store.call("XLEN", dead_letters(name)))
    output = inspect(store, FIREHOSE_BACKFILL)
    indexer = output.group(settings.indexer_group)
    unindexed = indexer.lag + indexer.pending if indexer else output.length
    return Queues(queued, running, count_waiting(store), buried, unindexed)


def document(
    queues: Queues, stored: Stored | None, workers: list[dict[str, Any]], window: float
) -> dict[str, Any]:
    """Return everything as JSON; `stored` is None where PostgreSQL cannot be asked."""
    rate = stored.repos_per_second if stored else 0.0
    found: dict[str, Any] = {
        "queued": queues.queued, "running": queues.running, "waiting": queues.waiting,
        "left": queues.left, "dead_letters": queues.dead_letters,
        "records_not_indexed": queues.records_queued, "window_seconds": window,
        "eta_seconds": round(queues.left / rate) if rate and queues.left else None,
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
