"""The indexer's metrics: the names of the original service, and more for operators.

Everything is exported at 0 from the first scrape on, labelled series included; labels have a fixed
set of values, never data from outside.
"""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

KINDS = ("create", "update", "delete", "repo", "account", "identity")
OUTCOMES = ("inserted", "updated", "deleted", "touched", "stale")
# Reasons to reject a record: its content, an error of PostgreSQL, or an error of our own code.
RECORD_REFUSALS = (
    "missing_field", "wrong_type", "too_long", "too_short", "too_many_items", "invalid_did",
    "invalid_uri", "invalid_cid", "invalid_blob", "invalid_handle", "foreign_list", "foreign_post",
    "invalid_datetime", "invalid_language", "invalid_nsid", "out_of_range", "too_deep",
    "bad_data", "internal_error", "crashes_worker", "other",
)  # fmt: skip
# Reasons to reject an entry that is not a readable record.
ENTRY_REFUSALS = (
    "invalid_json", "invalid_field", "unknown_type", "too_big", "invalid_rkey", "invalid_rev",
    "invalid_label",
)  # fmt: skip
REFUSALS = (*RECORD_REFUSALS, *ENTRY_REFUSALS)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 10, 50, 100, 250, 500, 1_000, 2_000, 5_000, 10_000, 20_000)
# Events of these collections have counters of their own in the original service.
ORIGINAL_COLLECTIONS = {
    "app.bsky.feed.post": "post",
    "app.bsky.feed.like": "like",
    "app.bsky.feed.repost": "repost",
    "app.bsky.graph.follow": "follow",
    "app.bsky.graph.block": "block",
    "app.bsky.actor.profile": "profile",
}


class IndexerMetrics:
    """All metrics of an indexer."""

    def __init__(
        self, registry: CollectorRegistry, streams: Sequence[str], collections: Sequence[str]
    ) -> None:
        self._registry = registry
        self._collections = frozenset(collections)
        self._declare_events()
        self._declare_writes()
        self._declare_failures(collections)
        self._declare_state(streams)

    def _declare_events(self) -> None:
        self.events = self._counter("events_processed", "Record events processed")
        self.kinds = {
            kind: self._counter(f"{kind}_events", f"Events of type {kind} processed")
            for kind in KINDS
        }
        self.by_collection = {
            nsid: self._counter(f"{name}_events", f"Creates of {nsid} processed")
            for nsid, name in ORIGINAL_COLLECTIONS.items()
        }
        self.misplaced = self._counter(
            "misplaced_events", "Repo events in firehose_live, where they do not belong"
        )
        self.ignored = self._counter("ignored_events", "Events of collections nobody indexes")
        self.labels = self._counter("labels_processed", "Labels processed")
        self.labels_added = self._counter("labels_added", "Labels stored")
        self.labels_removed = self._counter("labels_removed", "Negations of labels stored")

    def _declare_writes(self) -> None:
        self.inserted = self._counter("records_inserted", "Rows inserted into record")
        self.outcomes = self._counter("record_changes", "Record events by their outcome", "outcome")
        for outcome in OUTCOMES:
            self.outcomes.labels(outcome)
        self.writes = self._counter("db_writes", "Records inserted, updated or deleted")
        self.notifications = self._counter("notifications", "Notifications inserted")
        self.actors = self._counter("actors_created", "Accounts seen for the first time")
        self.transactions = self._counter("batches", "Batches applied")

    def _declare_failures(self, collections: Sequence[str]) -> None:
        self.errors = self._counter("errors", "Everything that went wrong")
        self.expected = self._counter("expected_errors", "Entries refused because of their content")
        self.unexpected = self._counter("unexpected_errors", "Failures of stores or of our code")
        self.refusals = self._counter("refused", "Entries refused by reason", "reason")
        for reason in REFUSALS:
            self.refusals.labels(reason)
        self.rejected = self._counter(
            "rejected_records", "Refused records by collection and reason", "collection", "reason"
        )
        for nsid in collections:
            for reason in RECORD_REFUSALS:
                self.rejected.labels(nsid, reason)
        self.dead_letters = self._counter("dead_letters", "Entries put into dead-letter streams")
        self.conflicts = self._counter("transaction_conflicts", "Transactions tried again")
        self.database_failures = self._counter("database_failures", "Lost database connections")
        self.store_failures = self._counter("store_failures", "Calls that Redis did not carry out")
        self.ack_failures = self._counter("ack_failures", "Failed acknowledgements, tried again")
        self.bodiless = self._counter("missing_bodies", "Pending entries that no longer exist")

    def _declare_state(self, streams: Sequence[str]) -> None:
        self.pending = self._gauge("pending_messages", "Entries read and not yet acknowledged")
        self.active = self._gauge("active_tasks", "Batches that are being applied")
        self.lag = self._gauge(
            "event_lag_seconds", "Age of the newest event when it was applied", "stream"
        )
        self.queued = self._histogram(
            "queue_seconds", "Time from a stream to its row, of each batch's oldest entry",
            SECONDS, "stream",
        )  # fmt: skip
        self.stale = self._counter(
            "stale_writes", "Refused writes of states older than the stored one", "stream"
        )
        self.duration = self._histogram("batch_seconds", "Time to apply a batch", SECONDS, "stream")
        self.apply_seconds = self._counter("apply_seconds", "Time spent applying batches", "stream")
        self.history_share = self._gauge(
            "backfill_share", "Part of the recent applying time that history had, 0 to 1"
        )
        self.live_behind = self._gauge(
            "live_behind", "1 while live events or labels wait, so that history has its share only"
        )
        self.batch_size = self._histogram("batch_events", "Entries of a batch", SIZES, "stream")
        self.claimed = self._counter("entries_claimed", "Entries taken over from dead consumers")
        self.trimmed = self._counter("entries_trimmed", "Entries removed by trimming")
        self.handle_checks = self._counter("handle_checks", "Handles looked up", "result")
        for result in ("verified", "unverified", "failed"):
            self.handle_checks.labels(result)
        self.deletions = self._counter("deletion_checks", "Deleted accounts looked up", "result")
        for result in ("purged", "hosted", "unknown", "obsolete"):
            self.deletions.labels(result)
        self.tombstones = self._gauge("tombstones", "Tombstones of deleted records")
        self.early_replies = self._gauge(
            "early_replies",
            "Replies that wait for a post above them, whose author is to be notified",
        )
        self.pruned = self._counter("tombstones_pruned", "Tombstones removed below complete revs")
        for metric in (
            self.lag,
            self.queued,
            self.duration,
            self.batch_size,
            self.stale,
            self.apply_seconds,
        ):
            for stream in streams:
                metric.labels(stream)

    def refuse(self, reason: str, collection: str = "") -> None:
        """Count an entry that cannot be indexed."""
        self.errors.inc()
        self.expected.inc()
        self.refusals.labels(reason if reason in REFUSALS else "other").inc()
        if collection in self._collections:
            known = reason if reason in RECORD_REFUSALS else "other"
            self.rejected.labels(collection, known).inc()

    def internal_error(self) -> None:
        """Count an unexpected exception in the work on one account."""
        self.fail(self.refusals.labels("internal_error"))

    def fail(self, counter: Counter) -> None:
        """Count a failure that is not caused by data."""
        self.errors.inc()
        self.unexpected.inc()
        counter.inc()

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"indexer_{name}_total", help, labels, registry=self._registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"indexer_{name}", help, labels, registry=self._registry)

    def _histogram(self, name: str, help: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"indexer_{name}", help, labels, registry=self._registry, buckets=buckets)
