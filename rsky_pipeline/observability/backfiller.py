"""The backfiller's metrics: the names of the original service, and more for operators."""

from prometheus_client import CollectorRegistry, Counter, Gauge

FAILURE_REASONS = (
    "RepoNotFound", "NotFound", "RepoDeactivated", "RepoSuspended", "RepoTakendown",
    "RepoDeleted", "RepoInactive", "did_not_found", "did_unavailable", "no_pds", "no_key",
    "rate_limited", "server_error", "refused", "unreachable", "timeout", "malformed",
    "too_big", "forbidden", "invalid_car", "incomplete", "invalid_tree", "invalid_commit",
    "stale_repo",
    "wrong_did", "bad_signature", "malformed_job", "crashes_worker", "too_slow", "no_disk",
    "host_parked", "internal_error", "other",
)  # fmt: skip
FAILURE_KINDS = ("permanent", "transient", "rate_limited", "invalid")
OUTCOMES = ("done", "unchanged", "unavailable", "failed")


class BackfillerMetrics:
    """All metrics of a backfiller; every series exists from the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, meaning: str) -> Counter:
            return Counter(f"backfiller_{name}", meaning, registry=registry)

        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(f"backfiller_{name}", meaning, registry=registry)

        self.processed = counter("repos_processed_total", "Repos finished, skipped ones included")
        self.skipped = counter("repos_skipped_total", "Repos that cannot be fetched, finally")
        self.failed = counter("repos_failed_total", "Failed attempts at a repo")
        self.dead_lettered = counter("repos_dead_lettered_total", "Repos given up")
        self.retries = counter("retries_attempted_total", "Further attempts at a repo")
        self.records = counter("records_extracted_total", "Records durably queued")
        self.deletes = counter(
            "deletes_queued_total", "Deletions of records that a repo no longer holds"
        )
        self.filtered = counter("records_filtered_total", "Records of other collections")
        self.unreadable = counter("records_unreadable_total", "Records that cannot be decoded")
        self.fetch_errors = counter("car_fetch_errors_total", "Failures to fetch a CAR")
        self.parse_errors = counter("car_parse_errors_total", "CARs that are invalid")
        self.verification_errors = counter(
            "verification_errors_total", "Repos with a wrong DID or signature"
        )
        self.bytes = counter("bytes_fetched_total", "Bytes of CARs")
        self.claimed = counter("entries_claimed_total", "Entries taken over from dead consumers")
        self.postponed = counter("repos_postponed_total", "Repos put off until their host has time")
        self.woken = counter("repos_woken_total", "Repos whose time to wait has passed")
        self.spilled = counter(
            "repos_spilled_total", "Repos too large for the memory that was free"
        )
        self.database_errors = counter(
            "database_errors_total", "Calls that PostgreSQL did not carry out"
        )
        self.store_errors = counter("store_errors_total", "Calls that Redis did not carry out")
        self.backpressure = counter("backpressure_waits_total", "Waits for room in the output")
        self.waiting = gauge(
            "repos_waiting", "Repos that wait for another attempt, or to be stored"
        )
        self.running = gauge("repos_running", "Repos in flight")
        self.downloads = gauge("downloads_running", "Downloads in progress")
        self.disk = gauge("disk_reserved_bytes", "Bytes of repos in temporary files")
        self.hosts = gauge("hosts_known", "Hosts that are remembered at the moment")
        self.hosts_parked = gauge("hosts_parked", "Hosts that are left alone at the moment")
        self.memory = gauge("memory_reserved_bytes", "Bytes reserved for repos in flight")
        self.failures = Counter(
            "backfiller_failures_total", "Failed attempts by reason", ["reason"], registry=registry
        )
        for reason in FAILURE_REASONS:
            self.failures.labels(reason)
        self.kinds = Counter(
            "backfiller_failure_kinds_total", "Failed attempts by kind", ["kind"],
            registry=registry,
        )  # fmt: skip
        for kind in FAILURE_KINDS:
            self.kinds.labels(kind)
        self.outcomes = Counter(
            "backfiller_outcomes_total", "Repos that came to an end, by how", ["outcome"],
            registry=registry,
        )  # fmt: skip
        for outcome in OUTCOMES:
            self.outcomes.labels(outcome)

    def count_failure(self, reason: str, kind: str = "invalid") -> None:
        """Count a failed attempt; unknown reasons share a series."""
        self.failed.inc()
        self.failures.labels(reason if reason in FAILURE_REASONS else "other").inc()
        self.kinds.labels(kind).inc()
