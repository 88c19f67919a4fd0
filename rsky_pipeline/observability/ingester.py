"""The ingester's metrics: the names of the original service, and more for operators.

Everything is exported at 0 from the first scrape on, labelled series included, for which the
values of each label are a fixed list. Nothing is ever labelled with data from outside.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

FRAME_TYPES = (
    "commit", "sync", "identity", "account", "labels", "info", "error", "unknown", "undecodable",
)  # fmt: skip
ERROR_REASONS = (
    # a frame that cannot be read
    "invalid_cbor", "invalid_frame", "invalid_ops", "invalid_cid", "invalid_key", "invalid_type",
    "integer_range", "float", "unknown_tag", "trailing_bytes", "too_deep", "too_many_items",
    "frame_too_big", "blocks_too_big", "text_too_long", "future_time", "oversize_message",
    "text_message", "internal",
    # the blocks of a commit
    "invalid_car_header", "invalid_varint", "truncated_car", "block_too_big", "hash_mismatch",
    "root_mismatch", "missing_block", "too_big", "expands_too_much", "too_many_blocks",
    # the commit itself and its operations
    "commit_version", "commit_fields", "not_canonical", "commit_did", "commit_rev", "future_rev",
    "missing_node", "inversion", "invalid_operation",
    # one operation, one label
    "invalid_path", "invalid_record", "not_encodable", "invalid_label",
    "label_forged", "label_unsigned", "label_no_key", "label_unverified",
    # the world around
    "connection", "error_frame", "future_cursor", "invalid_cursor", "store_unavailable",
    "store_rejected", "cursor_moved", "list_repos", "listed_repo", "internal_error", "other",
)  # fmt: skip
CHECK_STEPS = ("blocks", "signature", "operations")
JUMP_OUTCOMES = ("followed", "ignored")
GAP_KINDS = ("outdated_cursor", "seq_jump", "time_jump", "cursor_set")
VERDICTS = ("valid", "forged", "unverified", "no_account")
LIST_REPOS = "listRepos"  # the source of every relay's listing
LABEL_VERDICTS = ("valid", "forged", "unsigned", "no_key", "unverified")
INFO_NAMES = ("OutdatedCursor", "other")
LISTED_STATUSES = ("deactivated", "suspended", "takendown", "deleted", "other")
HOLE_RESULTS = ("closed", "left")
STORE_ACTIONS = ("full", "detour", "unavailable", "rejected")


class IngesterMetrics:
    """All metrics of an ingester; the arguments name the series that exist from the start."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        disconnect_reasons: Iterable[str] = (),
        relays: Iterable[str] = (),
        labelers: Iterable[str] = (),
        resync_reasons: Iterable[str] = (),
    ) -> None:
        self._registry = registry
        self._declare_firehose()
        self._declare_enumeration()
        self._declare_state()
        self._create_series(
            list(disconnect_reasons), list(relays), list(labelers), list(resync_reasons)
        )

    def _declare_firehose(self) -> None:
        self.messages = self._counter("firehose_messages", "WebSocket messages of relays")
        self.events = self._counter("firehose_events", "Stream events derived from frames")
        self.creates = self._counter("firehose_create_events", "Creates kept")
        self.updates = self._counter("firehose_update_events", "Updates kept")
        self.deletes = self._counter("firehose_delete_events", "Deletes kept")
        self.filtered = self._counter(
            "firehose_filtered_operations", "Operations on other collections"
        )
        self.stream_events = self._counter("stream_events", "Events appended to firehose_live")
        self.labeler_events = self._counter("labeler_events", "Label frames")
        self.labels_written = self._counter("labels_written", "Labels appended to label_live")
        self.errors = self._counter("errors", "Everything that went wrong")
        self.error_reasons = self._counter("error_reasons", "Errors by reason", "reason")
        self.frames = self._counter("frames", "Frames by type", "type")
        self.duplicates = self._counter("duplicate_frames", "Frames at or below the last seq")
        self.infos = self._counter("info_frames", "#info frames by name", "name")
        self.resyncs = self._counter("resyncs", "Repos queued to be fetched again", "reason")
        self.quarantined = self._counter("quarantined_frames", "Raw frames kept for a look")
        self.replays = self._counter(
            "replayed_frames", "Commits and account events that were taken over before", "host"
        )
        self.firsts = self._counter("first_frames", "Commits that no relay brought before", "host")
        self.resyncs_spared = self._counter(
            "resyncs_spared", "Repos to fetch that a job queued before takes care of"
        )
        self.resyncs_owed = self._counter(
            "resyncs_owed", "Repos to fetch at a later commit, since their relay's rate is used up"
        )
        self.gaps = self._counter("gaps", "Gaps noticed in a relay's events, by kind", "kind")
        self.seq_jumps = self._counter(
            "seq_jumps", "Large steps in a host's numbers, by whether it went on from there",
            "outcome",
        )  # fmt: skip
        self.check_seconds = self._counter(
            "check_seconds", "Time spent on checks of commits, by step", "step"
        )
        self.label_verdicts = self._counter(
            "label_verifications", "Labels checked, by verdict", "verdict"
        )
        self.key_changes = self._counter(
            "key_changes", "Signing keys that were found to be others than before, by whether an "
            "identity event had come", "announced",
        )  # fmt: skip
        self.verdicts = self._counter("verifications", "Commits checked, by verdict", "verdict")

    def _declare_enumeration(self) -> None:
        self.repos_fetched = self._counter("backfill_repos_fetched", "Repos from listRepos")
        self.repos_written = self._counter(
            "backfill_repos_written", "Repos appended to repo_backfill"
        )
        self.fetch_errors = self._counter("backfill_fetch_errors", "Failed listRepos requests")
        self.cursor_skips = self._counter(
            "backfill_cursor_skips", "Holes of a listing: repos that a host cannot list, for now"
        )
        self.listing_pages = self._counter("listing_pages", "Pages of a listing", "host", "source")
        self.listing_failures = self._counter(
            "listing_failures", "Failed requests of a listing", "host", "source"
        )
        self.listing_repos = self._gauge(
            "listing_repos", "Repos listed in the present round", "host", "source"
        )
        self.listing_position = self._gauge(
            "listing_position", "Cursor of a listing where it is a number", "host", "source"
        )
        self.listing_done = self._gauge(
            "listing_done", "1 when a listing is at its end", "host", "source"
        )
        self.listing_stuck = self._gauge(
            "listing_stuck", "1 at a repo that a host cannot list and that has no way around it",
            "host", "source",
        )  # fmt: skip
        self.listing_holes = self._gauge("listing_holes", "Holes to be tried again", "host")
        self.hole_retries = self._counter("listing_hole_retries", "Holes tried again", "result")
        self.listing_skipped = self._counter(
            "listing_skipped_repos", "Listed repos that their host would refuse", "status"
        )
        self.complete = self._gauge("backfill_complete", "1 when all repos have been listed")

    def _declare_state(self) -> None:
        self.connections = self._gauge("websocket_connections", "Open sockets")
        self.backpressure = self._gauge("backpressure_active", "1 while reading is held up")
        self.backpressure_seconds = self._counter(
            "backpressure_seconds", "Time that reading was held up"
        )
        self.events_in_memory = self._gauge("events_in_memory", "Events read and not yet written")
        self.bytes_in_memory = self._gauge("bytes_in_memory", "Their size")
        self.store_retries = self._counter("store_retries", "Appends tried again", "action")
        self.disconnects = self._counter("disconnects", "Ended connections by reason", "reason")
        self.cursor = self._gauge("cursor_seq", "Stored cursor", "stream", "host")
        self.states_cached = self._gauge("repo_states_cached", "Repo states in memory")
        self.state_lookups = self._counter(
            "repo_state_lookups", "Repo states read because they were not in memory"
        )
        self.relay_leads = self._gauge(
            "relay_leads", "1 for the relay that brings most commits first", "host"
        )
        self.relay_behind = self._gauge(
            "relay_behind_seconds", "How much later than another relay a commit comes", "host"
        )
        self.relay_stalled = self._gauge(
            "relay_stalled", "1 for a relay that is silent, away, or far behind", "host"
        )
        self.lag = self._gauge(
            "event_lag_seconds", "Age of the newest event when it was written", "host"
        )
        self.event_time = self._gauge(
            "last_event_timestamp_seconds", "Time of the newest event, since 1970", "host"
        )

    def _create_series(
        self, disconnect_reasons: list[str], relays: list[str], labelers: list[str],
        resync_reasons: list[str],
    ) -> None:  # fmt: skip
        for metric, values in (
            (self.error_reasons, ERROR_REASONS),
            (self.frames, FRAME_TYPES),
            (self.infos, INFO_NAMES),
            (self.resyncs, resync_reasons),
            (self.verdicts, VERDICTS),
            (self.label_verdicts, LABEL_VERDICTS),
            (self.store_retries, STORE_ACTIONS),
            (self.hole_retries, HOLE_RESULTS),
            (self.listing_skipped, LISTED_STATUSES),
            (self.disconnects, disconnect_reasons),
            (self.gaps, GAP_KINDS),
            (self.seq_jumps, JUMP_OUTCOMES),
            (self.key_changes, ("yes", "no")),
            (self.check_seconds, CHECK_STEPS),
            (self.replays, relays),
            (self.firsts, relays),
            (self.relay_leads, relays),
            (self.relay_behind, relays),
            (self.relay_stalled, relays),
        ):
            for value in values:
                metric.labels(value)
        for host in relays:
            self.cursor.labels("firehose_live", host)
            self.lag.labels(host)
            self.event_time.labels(host)
            self._create_listing_series(host)
        for host in labelers:
            self.cursor.labels("label_live", host)

    def _create_listing_series(self, host: str) -> None:
        """Also where listing is switched off: a metric that is declared is exported."""
        for metric in (
            self.listing_pages,
            self.listing_failures,
            self.listing_repos,
            self.listing_position,
            self.listing_done,
            self.listing_stuck,
        ):
            metric.labels(host, LIST_REPOS)
        self.listing_holes.labels(host)

    def error(self, reason: str, count: int = 1) -> None:
        """Count an error; a reason that is not declared counts as `other`."""
        self.errors.inc(count)
        self.error_reasons.labels(reason if reason in ERROR_REASONS else "other").inc(count)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"ingester_{name}", help, labels, registry=self._registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"ingester_{name}", help, labels, registry=self._registry)
