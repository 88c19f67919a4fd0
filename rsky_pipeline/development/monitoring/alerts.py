"""The alerts: what is wrong, since when, and which page says what to do."""

from collections.abc import Mapping
from dataclasses import dataclass

from rsky_pipeline.development.monitoring.expressions import checked
from rsky_pipeline.development.monitoring.recording import RECORDED


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert: `page` is a section of docs/runbook.md or a page of docs/."""

    name: str
    severity: str  # critical: somebody has to look now; warning: today
    holds: str
    expr: str
    summary: str
    page: str

    def rule(self) -> Mapping[str, object]:
        """Return the alert as Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": checked(self.expr, RECORDED),
            "for": self.holds,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "runbook": f"docs/{self.page}"},
        }


PROCESSES = (
    Alert(
        "RskyProcessDown", "critical", "2m", 'up{job=~"rsky-.*"} == 0',
        "{{ $labels.job }} at {{ $labels.instance }} does not answer",
        "runbook.md#a-process-is-down",
    ),
    Alert(
        "RskyCrashLoop", "critical", "1m", "rsky_process_crash_looping == 1",
        "{{ $labels.process }} ends again and again",
        "runbook.md#a-process-is-down",
    ),
    Alert(
        "RskyProcessNotReady", "warning", "5m", "rsky_process_up == 0",
        "{{ $labels.process }} has not been ready for five minutes",
        "runbook.md#a-process-is-down",
    ),
    Alert(
        "RskyProcessRestarting", "warning", "0m", "increase(rsky_process_restarts_total[15m]) > 3",
        "{{ $labels.process }} was started again more than three times in a quarter of an hour",
        "runbook.md#a-process-is-down",
    ),
    Alert(
        "RskyMemoryHigh", "warning", "10m",
        'rsky_process_resident_bytes{role=~"ingester|indexer|backfiller"} > 300e6',
        "{{ $labels.process }} holds more than 300 MB, which no load should need",
        "troubleshooting.md",
    ),
)  # fmt: skip
STORES = (
    Alert(
        "RskyRedisUnavailable", "critical", "1m",
        "sum(rate(rsky_stream_poll_errors_total[1m])) > 0",
        "Workers cannot look at the streams", "runbook.md#lose-redis",
    ),
    Alert(
        "RskyRedisRefusesWrites", "critical", "2m",
        'sum(rate(ingester_store_retries_total{action="rejected"}[2m])) > 0',
        "Redis refuses what the ingester appends; its memory may be full",
        "runbook.md#lose-redis",
    ),
    Alert(
        "RskyDatabaseUnavailable", "critical", "1m",
        "sum(rate(indexer_database_failures_total[2m])) > 0",
        "The indexer loses its connections to PostgreSQL", "runbook.md#lose-postgresql",
    ),
)  # fmt: skip
FLOW = (
    Alert(
        "RskyNoRelay", "critical", "5m", "sum(ingester_websocket_connections) == 0",
        "The ingester follows no relay", "runbook.md#the-relay-is-away",
    ),
    Alert(
        "RskyRelaySilent", "critical", "5m",
        "sum(rate(ingester_firehose_messages_total[5m])) == 0",
        "No relay has sent anything for five minutes", "runbook.md#the-relay-is-away",
    ),
    Alert(
        "RskyBackpressure", "warning", "10m", "max(ingester_backpressure_active) > 0",
        "Reading from the relay has been held up for ten minutes; nothing is discarded",
        "runbook.md#fall-behind",
    ),
    Alert(
        "RskyFallingBehind", "warning", "10m",
        'rsky:oldest_unacked_seconds:max{stream=~"firehose_live|label_live"} > 300',
        "The oldest entry of {{ $labels.stream }} that {{ $labels.group }} has to finish is "
        "{{ $value | humanizeDuration }} old",
        "runbook.md#fall-behind",
    ),
    Alert(
        "RskyIndexerStalled", "critical", "5m",
        'sum(rsky:group_lag:max{stream="firehose_live"}) > 0'
        " and sum(rate(indexer_events_processed_total[5m])) == 0",
        "Live events wait and none is indexed", "runbook.md#fall-behind",
    ),
    Alert(
        "RskyBackfillStalled", "warning", "15m",
        'sum(rsky:group_lag:max{stream=~"repo_backfill.*"}) > 0'
        " and sum(rate(backfiller_repos_processed_total[15m])) == 0"
        " and sum(rate(backfiller_records_extracted_total[15m])) == 0",
        "Repos wait and none is fetched", "troubleshooting.md",
    ),
    Alert(
        "RskyEnumerationFails", "warning", "15m",
        "sum by (host, source) (increase(ingester_listing_failures_total[15m])) > 3"
        " and sum by (host, source) (increase(ingester_listing_pages_total[15m])) == 0"
        " and min by (host, source) (ingester_listing_done) == 0",
        "{{ $labels.host }} does not list its repos", "troubleshooting.md",
    ),
)  # fmt: skip
# What the workers find wrong by themselves; back-pressure has an alert of its own.
_GRAVE = "polluted_stream|unread_removed|redis_memory|consumer_stall"
FINDINGS = (
    Alert(
        "RskyGraveFinding",
        "critical",
        "0m",
        f'max by (finding, subject) (rsky_finding{{finding=~"{_GRAVE}"}}) > 0',
        "{{ $labels.finding }} {{ $labels.subject }}: `rsky-pipeline status` says more",
        "runbook.md#watch",
    ),
    Alert(
        "RskyFinding",
        "warning",
        "1m",
        f'max by (finding, subject) (rsky_finding{{finding!~"{_GRAVE}|back_pressure"}}) > 0',
        "{{ $labels.finding }} {{ $labels.subject }}: `rsky-pipeline status` says more",
        "runbook.md#watch",
    ),
)
DATA = (
    Alert(
        "RskyDeadLetters", "warning", "1m", "rsky:dead_letters:max > 0",
        "{{ $value }} entries of {{ $labels.stream }} could not be processed",
        "runbook.md#look-into-dead-letters",
    ),
    Alert(
        "RskyDeadLettersGrow", "critical", "5m", "delta(rsky:dead_letters:max[15m]) > 100",
        "More than 100 entries of {{ $labels.stream }} in a quarter of an hour could not be "
        "processed",
        "runbook.md#look-into-dead-letters",
    ),
    Alert(
        "RskyUnexpectedErrors", "warning", "5m",
        "sum(rate(indexer_unexpected_errors_total[5m])) > 0.1",
        "The indexer meets errors that are not the data's fault", "troubleshooting.md",
    ),
    Alert(
        "RskyRefusesRecords", "warning", "15m", "rsky:refused_ratio:rate5m > 0.05",
        "The indexer refuses more than one event in twenty", "troubleshooting.md",
    ),
    Alert(
        "RskyReposFail", "warning", "15m", "rsky:failed_repos_ratio:rate15m > 0.5",
        "More than half of the attempts at repos fail", "troubleshooting.md",
    ),
    Alert(
        "RskyForgedCommits", "warning", "1m",
        'sum(increase(ingester_verifications_total{verdict="forged"}[10m])) > 0',
        "A relay sent commits whose signature is wrong", "troubleshooting.md",
    ),
)  # fmt: skip
GROUPS: Mapping[str, tuple[Alert, ...]] = {
    "rsky-processes": PROCESSES,
    "rsky-stores": STORES,
    "rsky-flow": FLOW,
    "rsky-findings": FINDINGS,
    "rsky-data": DATA,
}
ALERTS = tuple(alert for group in GROUPS.values() for alert in group)


def groups() -> list[dict[str, object]]:
    """Return the rule groups as Prometheus reads them."""
    return [
        {"name": name, "rules": [alert.rule() for alert in alerts]}
        for name, alerts in GROUPS.items()
    ]
