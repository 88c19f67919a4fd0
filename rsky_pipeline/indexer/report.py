"""The report of an indexer: metrics of each batch, health, throttled log lines of refusals."""

import logging
import time
from collections import Counter
from datetime import datetime

from rsky_pipeline.database.errors import DatabaseError, TransactionConflictError
from rsky_pipeline.indexer.core.batch import BatchOutcome, EntryBatch
from rsky_pipeline.indexer.core.entries import Reading
from rsky_pipeline.indexer.core.labels import LabelReading
from rsky_pipeline.observability.indexer import IndexerMetrics
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.errors import StoreError
from rsky_pipeline.runtime.health_document import RoleHealth
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.streams.names import FIREHOSE_LIVE, LABEL_LIVE

RECORD_KINDS = ("create", "update", "delete")
_log = logging.getLogger(__name__)


class IndexerReport:
    """Keeps the figures of one worker."""

    def __init__(self, context: WorkerContext, metrics: IndexerMetrics) -> None:
        self.metrics = metrics
        self.events = 0  # entries acknowledged since the start
        self.live_lag = 0.0  # seconds that the newest live event was old when it was applied
        self._context = context
        self._throttled = ThrottledLog(_log)
        self._details = RoleHealth()
        self._rate_from = (time.monotonic(), 0)

    def note(self, batch: EntryBatch, outcome: BatchOutcome) -> None:
        """Count a batch that was applied and acknowledged."""
        metrics, stream = self.metrics, batch.stream
        self.events += len(batch.items)
        metrics.transactions.inc()
        metrics.batch_size.labels(stream).observe(len(batch.items))
        metrics.duration.labels(stream).observe(outcome.seconds)
        metrics.stale.labels(stream).inc(sum(applied.stale for applied in outcome.applied))
        metrics.conflicts.inc(outcome.conflicts)
        metrics.bodiless.inc(outcome.bodiless)
        metrics.dead_letters.inc(outcome.dead_letters)
        metrics.labels_added.inc(outcome.labels_added)
        metrics.labels_removed.inc(outcome.labels_removed)
        for (log, result), count in outcome.bsync.items():
            metrics.bsync.labels(log, result).inc(count)
        self._count_events(batch)
        self._count_rows(outcome)
        for kind, count in outcome.left_out.items():
            metrics.blocked.labels(kind).inc(count)
        self._refuse(outcome)
        self._note_age(batch)

    def caught_up(self) -> None:
        """Note that no live event waits."""
        self.live_lag = 0.0

    def failed(self, error: StoreError, *, acknowledging: bool) -> None:
        """Count a failure of a store; the link logs it and tries again."""
        metrics = self.metrics
        if isinstance(error, TransactionConflictError):
            metrics.fail(metrics.conflicts)
        elif isinstance(error, DatabaseError):
            metrics.fail(metrics.database_failures)
        else:
            metrics.fail(metrics.ack_failures if acknowledging else metrics.store_failures)

    def health(self) -> None:
        """Publish rate and lag."""
        then, before = self._rate_from
        now = time.monotonic()
        self._rate_from = (now, self.events)
        rate = (self.events - before) / max(now - then, 0.001)
        self._details |= {"events": self.events, "rate": round(rate, 1)}
        self._context.health(self._details)

    def _count_events(self, batch: EntryBatch) -> None:
        readings = [item.reading for item in batch.items]
        kinds = Counter((it.kind, it.collection) for it in readings if isinstance(it, Reading))
        counted = Counter[str]()
        for (kind, collection), count in kinds.items():
            counted[kind] += count
            if kind in RECORD_KINDS and not collection:
                self.metrics.ignored.inc(count)
            elif kind == "create" and collection in self.metrics.by_collection:
                self.metrics.by_collection[collection].inc(count)
        for kind, counter in self.metrics.kinds.items():
            counter.inc(counted[kind])
        self.metrics.events.inc(sum(counted[kind] for kind in RECORD_KINDS))
        if batch.stream == FIREHOSE_LIVE:
            self.metrics.misplaced.inc(counted["repo"])
        for reading in readings if batch.stream == LABEL_LIVE else ():
            if isinstance(reading, LabelReading):
                self.metrics.labels.inc(len(reading.labels) + len(reading.refused))

    def _count_rows(self, outcome: BatchOutcome) -> None:
        metrics = self.metrics
        for applied in outcome.applied:
            metrics.inserted.inc(applied.inserted)
            metrics.writes.inc(applied.inserted + applied.updated + applied.deleted)
            metrics.notifications.inc(applied.notifications)
            metrics.actors.inc(applied.new_actors)
            for name, count in (
                ("inserted", applied.inserted),
                ("updated", applied.updated),
                ("deleted", applied.deleted),
                ("touched", applied.touched),
                ("stale", applied.stale),
            ):
                metrics.outcomes.labels(name).inc(count)

    def _refuse(self, outcome: BatchOutcome) -> None:
        for refusal in outcome.refused:
            reading = refusal.item.reading
            collection = reading.collection if isinstance(reading, Reading) else ""
            self.metrics.refuse(refusal.reason, collection)
            self._throttled.warning(
                "entry refused",
                key=refusal.reason,
                reason=refusal.reason,
                error=refusal.message,
                entry=refusal.item.delivery.id,
                collection=collection,
                did=reading.did if isinstance(reading, Reading) else "",
                stream=refusal.item.delivery.stream,
            )

    def _note_age(self, batch: EntryBatch) -> None:
        now = time.time()
        queued = now - int(batch.items[0].delivery.id.partition("-")[0]) / 1_000
        self.metrics.queued.labels(batch.stream).observe(max(0.0, queued))
        times = [item.reading.time for item in batch.items if isinstance(item.reading, Reading)]
        try:
            newest = datetime.fromisoformat(max(times, default="")).timestamp()
        except ValueError:
            return  # the year 0, or no readable entry in the batch
        lag = max(0.0, now - newest)
        self.metrics.lag.labels(batch.stream).set(lag)
        if batch.stream == FIREHOSE_LIVE:
            self.live_lag = lag
            self._details["firehose_live_event_lag_seconds"] = round(lag, 1)
        else:
            self._details["firehose_backfill_event_lag_seconds"] = round(lag, 1)
