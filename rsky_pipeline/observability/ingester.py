"""The ingester's metrics: the names of the original service, and more for operators.

The values of each label are a fixed list: nothing is ever labelled with data from outside.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.selection import BLOCK_KINDS
from rsky_pipeline.observability.declaring import Declarer

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
    "invalid_rev", "missing_node", "inversion", "invalid_operation",
    # one operation, one label
    "invalid_path", "invalid_record", "not_encodable", "invalid_label",
    "label_forged", "label_unsigned", "label_no_key", "label_unverified", "no_account",
    # the world around
    "connection", "error_frame", "future_cursor", "invalid_cursor", "store_unavailable",
    "store_rejected", "cursor_moved", "list_repos", "listed_repo", "bsync", "invalid_operation",
    "internal_error", "other",
)  # fmt: skip
CHECK_STEPS = ("blocks", "signature", "operations")
JUMP_OUTCOMES = ("followed", "ignored")
GAP_KINDS = (
    "outdated_cursor", "seq_jump", "time_jump", "cursor_refused", "cursor_set", "database_lost",
    "redis_lost",
)  # fmt: skip
VERDICTS = ("valid", "forged", "unverified", "no_account")
LIST_REPOS = "listRepos"  # the source of every relay's listing
LABEL_VERDICTS = ("valid", "forged", "unsigned", "no_key", "unverified")
INFO_NAMES = ("OutdatedCursor", "other")
LISTED_STATUSES = ("deactivated", "suspended", "takendown", "deleted", "other")
HOLE_RESULTS = ("closed", "left")
BSYNC_LOGS = ("mute", "notif", "operation")
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
        bsync: Iterable[str] = (),
        resync_reasons: Iterable[str] = (),
    ) -> None:
        declare, hosts = Declarer(registry, "ingester"), tuple(relays)
        self._declare_bsync(declare)
        self._declare_firehose(declare, hosts, resync_reasons)
        self._declare_enumeration(declare, hosts)
        self._declare_state(declare, hosts, labelers, disconnect_reasons)
        for log in bsync:
            self.cursor.labels("bsync_live", log)

    def _declare_firehose(
        self, declare: Declarer, relays: tuple[str, ...], resync_reasons: Iterable[str]
    ) -> None:
        counter = declare.counter
        self.messages = counter("firehose_messages", "WebSocket messages of relays")
        self.events = counter("firehose_events", "Stream events derived from frames")
        self.creates = counter("firehose_create_events", "Creates kept")
        self.updates = counter("firehose_update_events", "Updates kept")
        self.deletes = counter("firehose_delete_events", "Deletes kept")
        self.filtered = counter("firehose_filtered_operations", "Operations on other collections")
        self.blocked = counter(
            "blocked_events", "Frames, operations and listed repos left out since their account, "
            "host or collection is blocked", kind=BLOCK_KINDS,
        )  # fmt: skip
        self.stream_events = counter("stream_events", "Events appended to firehose_live")
        self.labeler_events = counter("labeler_events", "Label frames")
        self.labels_written = counter("labels_written", "Labels appended to label_live")
        self.errors = counter("errors", "Everything that went wrong")
        self.error_reasons = counter("error_reasons", "Errors by reason", reason=ERROR_REASONS)
        self.frames = counter("frames", "Frames by type", type=FRAME_TYPES)
        self.duplicates = counter("duplicate_frames", "Frames at or below the last seq")
        self.elsewhere = counter(
            "account_events_elsewhere", "Account events of a PDS for accounts of another host"
        )
        self.infos = counter("info_frames", "#info frames by name", name=INFO_NAMES)
        self.resyncs = counter("resyncs", "Repos queued to be fetched again", reason=resync_reasons)
        self.quarantined = counter("quarantined_frames", "Raw frames kept for a look")
        self.replays = counter(
            "replayed_frames", "Commits and account events that were taken over before", host=relays
        )
        self.firsts = counter("first_frames", "Commits that no relay brought before", host=relays)
        self.resyncs_spared = counter(
            "resyncs_spared", "Repos to fetch that a job queued before takes care of"
        )
        self.resyncs_owed = counter(
            "resyncs_owed", "Repos to fetch at a later commit, since their relay's rate is used up"
        )
        self.gaps = counter("gaps", "Gaps noticed in a relay's events, by kind", kind=GAP_KINDS)
        self.seq_jumps = counter(
            "seq_jumps", "Large steps in a host's numbers, by whether it went on from there",
            outcome=JUMP_OUTCOMES,
        )  # fmt: skip
        self.check_seconds = counter(
            "check_seconds", "Time spent on checks of commits, by step", step=CHECK_STEPS
        )
        self.label_verdicts = counter(
            "label_verifications", "Labels checked, by verdict", verdict=LABEL_VERDICTS
        )
        self.key_changes = counter(
            "key_changes", "Signing keys that were found to be others than before, by whether an "
            "identity event had come", announced=("yes", "no"),
        )  # fmt: skip
        self.verdicts = counter("verifications", "Commits checked, by verdict", verdict=VERDICTS)

    def _declare_bsync(self, declare: Declarer) -> None:
        # Also where bsync is not read: a metric that is declared is exported.
        counter, logs = declare.counter, BSYNC_LOGS
        self.bsync_answers = counter(
            "bsync_answers", "Answers of bsync, also without operations, by log", log=logs
        )
        self.bsync_operations = counter(
            "bsync_operations", "Operations of bsync appended to bsync_live, by log", log=logs
        )
        self.bsync_late = counter(
            "bsync_late_operations", "Of them, those that became visible after later ones, by log",
            log=logs,
        )  # fmt: skip

    def _declare_enumeration(self, declare: Declarer, relays: tuple[str, ...]) -> None:
        counter, gauge = declare.counter, declare.gauge
        # Also where listing is switched off: a metric that is declared is exported.
        listings = {"host": relays, "source": (LIST_REPOS,)}
        self.repos_fetched = counter("backfill_repos_fetched", "Repos from listRepos")
        self.repos_written = counter("backfill_repos_written", "Repos appended to repo_backfill")
        self.fetch_errors = counter("backfill_fetch_errors", "Failed listRepos requests")
        self.cursor_skips = counter(
            "backfill_cursor_skips", "Holes of a listing: repos that a host cannot list, for now"
        )
        self.listing_pages = counter("listing_pages", "Pages of a listing", **listings)
        self.listing_failures = counter(
            "listing_failures", "Failed requests of a listing", **listings
        )
        self.listing_repos = gauge("listing_repos", "Repos listed in the present round", **listings)
        self.listing_position = gauge(
            "listing_position", "Cursor of a listing where it is a number", **listings
        )
        self.listing_done = gauge("listing_done", "1 when a listing is at its end", **listings)
        self.listing_stuck = gauge(
            "listing_stuck", "1 at a repo that a host cannot list and that has no way around it",
            **listings,
        )  # fmt: skip
        self.listing_holes = gauge("listing_holes", "Holes to be tried again", host=relays)
        self.hole_retries = counter(
            "listing_hole_retries", "Holes tried again", result=HOLE_RESULTS
        )
        self.listing_skipped = counter(
            "listing_skipped_repos", "Listed repos that their host would refuse",
            status=LISTED_STATUSES,
        )  # fmt: skip
        self.complete = gauge("backfill_complete", "1 when all repos have been listed")

    def _declare_state(
        self, declare: Declarer, relays: tuple[str, ...], labelers: Iterable[str],
        disconnect_reasons: Iterable[str],
    ) -> None:  # fmt: skip
        counter, gauge = declare.counter, declare.gauge
        self.connections = gauge("websocket_connections", "Open sockets")
        self.backpressure = gauge("backpressure_active", "1 while reading is held up")
        self.backpressure_seconds = counter("backpressure_seconds", "Time that reading was held up")
        self.events_in_memory = gauge("events_in_memory", "Events read and not yet written")
        self.bytes_in_memory = gauge("bytes_in_memory", "Their size")
        self.store_retries = counter("store_retries", "Appends tried again", action=STORE_ACTIONS)
        self.disconnects = counter(
            "disconnects", "Ended connections by reason", reason=disconnect_reasons
        )
        self.cursor = gauge("cursor_seq", "Stored cursor", stream=(), host=())
        for stream, hosts in (("firehose_live", relays), ("label_live", labelers)):
            for host in hosts:
                self.cursor.labels(stream, host)
        self.connected_seconds = counter(
            "connected_seconds", "Seconds for which connections stood, however quiet",
            host=(*relays, *labelers),
        )  # fmt: skip
        self.states_cached = gauge("repo_states_cached", "Repo states in memory")
        self.state_lookups = counter(
            "repo_state_lookups", "Repo states read because they were not in memory"
        )
        self.relay_leads = gauge(
            "relay_leads", "1 for the relay that brings most commits first", host=relays
        )
        self.relay_behind = gauge(
            "relay_behind_seconds", "How much later than another relay a commit comes", host=relays
        )
        self.relay_connected = gauge(
            "relay_connected", "1 while the socket of a relay is open", host=relays
        )
        self.relay_stalled = gauge(
            "relay_stalled", "1 for a relay that is away, far behind, or silent against its habit",
            host=relays,
        )  # fmt: skip
        self.lag = gauge(
            "event_lag_seconds", "Age of the newest event when it was written", host=relays
        )
        self.event_time = gauge(
            "last_event_timestamp_seconds", "Time of the newest event, since 1970", host=relays
        )

    def error(self, reason: str, count: int = 1) -> None:
        """Count an error; a reason that is not declared counts as `other`."""
        self.errors.inc(count)
        self.error_reasons.labels(reason if reason in ERROR_REASONS else "other").inc(count)
