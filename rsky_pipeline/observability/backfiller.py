"""The backfiller's metrics: the names of the original service, and more for operators."""

from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.selection import BLOCK_KINDS
from rsky_pipeline.observability.declaring import Declarer

FAILURE_REASONS = (
    "RepoNotFound", "NotFound", "RepoDeactivated", "RepoSuspended", "RepoTakendown",
    "RepoDeleted", "RepoInactive", "did_not_found", "did_unavailable", "no_pds", "no_key",
    "rate_limited", "server_error", "refused", "unreachable", "timeout", "malformed",
    "too_big", "forbidden", "invalid_car", "incomplete", "invalid_tree", "invalid_commit",
    "invalid_rev", "stale_repo", "not_a_car", "not_xrpc", "invalid_did", "misled", "truncated",
    "wrong_did", "bad_signature", "malformed_job", "crashes_worker", "too_slow", "no_disk",
    "host_parked", "internal_error", "other",
)  # fmt: skip
FAILURE_KINDS = ("permanent", "transient", "rate_limited", "invalid")
OUTCOMES = ("done", "unchanged", "unavailable", "failed", "blocked")


class BackfillerMetrics:
    """All metrics of a backfiller; every series exists from the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        declare = Declarer(registry, "backfiller")
        counter, gauge = declare.counter, declare.gauge
        self.processed = counter("repos_processed", "Repos finished, skipped ones included")
        self.skipped = counter("repos_skipped", "Repos that cannot be fetched, finally")
        self.failed = counter("repos_failed", "Failed attempts at a repo")
        self.dead_lettered = counter("repos_dead_lettered", "Repos given up")
        self.retries = counter("retries_attempted", "Further attempts at a repo")
        self.records = counter("records_extracted", "Records durably queued")
        self.deletes = counter("deletes_queued", "Deletions of records that a repo no longer holds")
        self.blocked = counter(
            "blocked_repos", "Repos left out since their account or host is blocked",
            kind=BLOCK_KINDS[:2],
        )  # fmt: skip
        self.filtered = counter("records_filtered", "Records of other collections")
        self.unreadable = counter("records_unreadable", "Records that cannot be decoded")
        self.short_revs = counter("short_revs", "Repos whose rev is a shortened TID")
        self.fetch_errors = counter("car_fetch_errors", "Failures to fetch a CAR")
        self.parse_errors = counter("car_parse_errors", "CARs that are invalid")
        self.verification_errors = counter(
            "verification_errors", "Repos with a wrong DID or signature"
        )
        self.bytes = counter("bytes_fetched", "Bytes of CARs")
        self.claimed = counter("entries_claimed", "Entries taken over from dead consumers")
        self.postponed = counter("repos_postponed", "Repos put off until their host has time")
        self.woken = counter("repos_woken", "Repos whose time to wait has passed")
        self.spilled = counter("repos_spilled", "Repos too large for the memory that was free")
        self.database_errors = counter("database_errors", "Calls that PostgreSQL did not carry out")
        self.store_errors = counter("store_errors", "Calls that Redis did not carry out")
        self.backpressure = counter("backpressure_waits", "Waits for room in the output")
        self.waiting = gauge(
            "repos_waiting", "Repos that wait for another attempt, or to be stored"
        )
        self.running = gauge("repos_running", "Repos in flight")
        self.downloads = gauge("downloads_running", "Downloads in progress")
        self.disk = gauge("disk_reserved_bytes", "Bytes of repos in temporary files")
        self.hosts = gauge("hosts_known", "Hosts that are remembered at the moment")
        self.hosts_parked = gauge("hosts_parked", "Hosts that are left alone at the moment")
        self.memory = gauge("memory_reserved_bytes", "Bytes reserved for repos in flight")
        self.failures = counter("failures", "Failed attempts by reason", reason=FAILURE_REASONS)
        self.kinds = counter("failure_kinds", "Failed attempts by kind", kind=FAILURE_KINDS)
        self.outcomes = counter("outcomes", "Repos that came to an end, by how", outcome=OUTCOMES)

    def count_failure(self, reason: str, kind: str = "invalid") -> None:
        """Count a failed attempt; unknown reasons share a series."""
        self.failed.inc()
        self.failures.labels(reason if reason in FAILURE_REASONS else "other").inc()
        self.kinds.labels(kind).inc()
