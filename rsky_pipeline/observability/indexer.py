"""The indexer's metrics: the names of the original service, and more for operators.

Labels have a fixed set of values, never data from outside.
"""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter

from rsky_pipeline.configuration.selection import BLOCK_KINDS
from rsky_pipeline.observability.declaring import Declarer

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
BSYNC_LOGS = ("mute", "notif", "operation")
BSYNC_OUTCOMES = ("applied", "overtaken")
REFUSALS = (*RECORD_REFUSALS, *ENTRY_REFUSALS)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 10, 50, 100, 250, 500, 1_000, 2_000, 5_000, 10_000, 20_000)
SEEN_RESULTS = (
    "stored", "invalid", "slow", "too_much", "unknown_method", "failed", "unavailable", "denied",
)  # fmt: skip
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
        declare = Declarer(registry, "indexer")
        self._collections = frozenset(collections)
        self._declare_events(declare)
        self._declare_failures(declare, collections)
        self._declare_state(declare, streams)

    def _declare_events(self, declare: Declarer) -> None:
        counter = declare.counter
        self.events = counter("events_processed", "Record events processed")
        self.kinds = {
            kind: counter(f"{kind}_events", f"Events of type {kind} processed") for kind in KINDS
        }
        self.by_collection = {
            nsid: counter(f"{name}_events", f"Creates of {nsid} processed")
            for nsid, name in ORIGINAL_COLLECTIONS.items()
        }
        self.misplaced = counter(
            "misplaced_events", "Repo events in firehose_live, where they do not belong"
        )
        self.ignored = counter("ignored_events", "Events of collections nobody indexes")
        self.blocked = counter(
            "blocked_events", "Events left out since their account, host or collection is blocked",
            kind=BLOCK_KINDS,
        )  # fmt: skip
        self.labels = counter("labels_processed", "Labels processed")
        self.labels_added = counter("labels_added", "Labels stored")
        self.labels_removed = counter("labels_removed", "Negations of labels stored")
        self.bsync = counter(
            "bsync_operations", "Operations of bsync by log, and by whether a newer one about the "
            "same was known", log=BSYNC_LOGS, outcome=BSYNC_OUTCOMES,
        )  # fmt: skip
        self.inserted = counter("records_inserted", "Rows inserted into record")
        self.outcomes = counter(
            "record_changes", "Record events by their outcome", outcome=OUTCOMES
        )
        self.writes = counter("db_writes", "Records inserted, updated or deleted")
        self.notifications = counter("notifications", "Notifications inserted")
        self.actors = counter("actors_created", "Accounts seen for the first time")
        self.transactions = counter("batches", "Batches applied")

    def _declare_failures(self, declare: Declarer, collections: Sequence[str]) -> None:
        counter = declare.counter
        self.errors = counter("errors", "Everything that went wrong")
        self.expected = counter("expected_errors", "Entries refused because of their content")
        self.unexpected = counter("unexpected_errors", "Failures of stores or of our code")
        self.refusals = counter("refused", "Entries refused by reason", reason=REFUSALS)
        self.rejected = counter(
            "rejected_records", "Refused records by collection and reason",
            collection=collections, reason=RECORD_REFUSALS,
        )  # fmt: skip
        self.dead_letters = counter("dead_letters", "Entries put into dead-letter streams")
        self.conflicts = counter("transaction_conflicts", "Transactions tried again")
        self.database_failures = counter("database_failures", "Lost database connections")
        self.database_losses = counter(
            "database_losses", "Times that the database lacked acknowledged transactions"
        )
        self.store_failures = counter("store_failures", "Calls that Redis did not carry out")
        self.ack_failures = counter("ack_failures", "Failed acknowledgements, tried again")
        self.bodiless = counter("missing_bodies", "Pending entries that no longer exist")

    def _declare_state(self, declare: Declarer, streams: Sequence[str]) -> None:
        counter, gauge, histogram = declare.counter, declare.gauge, declare.histogram
        self.pending = gauge("pending_messages", "Entries read and not yet acknowledged")
        self.active = gauge("active_tasks", "Batches that are being applied")
        self.lag = gauge(
            "event_lag_seconds", "Age of the newest event when it was applied", stream=streams
        )
        self.queued = histogram(
            "queue_seconds", "Time from a stream to its row, of each batch's oldest entry",
            SECONDS, stream=streams,
        )  # fmt: skip
        self.stale = counter(
            "stale_writes", "Refused writes of states older than the stored one", stream=streams
        )
        self.duration = histogram("batch_seconds", "Time to apply a batch", SECONDS, stream=streams)
        self.apply_seconds = counter("apply_seconds", "Time spent applying batches", stream=streams)
        self.history_share = gauge(
            "backfill_share", "Part of the recent applying time that history had, 0 to 1"
        )
        self.live_behind = gauge(
            "live_behind", "1 while live events or labels wait, so that history has its share only"
        )
        self.batch_size = histogram("batch_events", "Entries of a batch", SIZES, stream=streams)
        self.claimed = counter("entries_claimed", "Entries taken over from dead consumers")
        self.trimmed = counter("entries_trimmed", "Entries removed by trimming")
        self.handle_checks = counter(
            "handle_checks", "Handles looked up", result=("verified", "unverified", "failed")
        )
        self.deletions = counter(
            "deletion_checks", "Deleted accounts looked up",
            result=("purged", "hosted", "unknown", "obsolete"),
        )  # fmt: skip
        self.tombstones = gauge("tombstones", "Tombstones of deleted records")
        self.early_replies = gauge(
            "early_replies",
            "Replies that wait for a post above them, whose author is to be notified",
        )
        self.seen = counter(
            "seen_requests", "Calls of UpdateNotificationSeen by bsync",
            result=SEEN_RESULTS,
        )  # fmt: skip
        self.pruned = counter("tombstones_pruned", "Tombstones removed below complete revs")

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
