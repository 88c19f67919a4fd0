"""Recording rules: the figures that dashboards and alerts share."""

from collections.abc import Mapping

from rsky_pipeline.development.monitoring.expressions import checked

RECORDING: Mapping[str, str] = {
    "rsky:live_events:rate1m": "sum(rate(ingester_stream_events_total[1m]))",
    "rsky:relay_messages:rate1m": "sum(rate(ingester_firehose_messages_total[1m]))",
    "rsky:indexed_events:rate1m": "sum(rate(indexer_events_processed_total[1m]))",
    "rsky:repos:rate5m": "sum(rate(backfiller_repos_processed_total[5m]))",
    "rsky:backfilled_records:rate5m": "sum(rate(backfiller_records_extracted_total[5m]))",
    "rsky:stream_length:max": "max by (stream) (rsky_stream_length)",
    "rsky:dead_letters:max": "max by (stream) (rsky_stream_dead_letters)",
    "rsky:group_lag:max": "max by (stream, group) (rsky_stream_group_lag)",
    "rsky:group_pending:max": "max by (stream, group) (rsky_stream_group_pending)",
    "rsky:oldest_unacked_seconds:max": (
        "max by (stream, group) (rsky_stream_oldest_unacked_seconds)"
    ),
    "rsky:refused_ratio:rate5m": (
        "sum(rate(indexer_expected_errors_total[5m]))"
        " / clamp_min(sum(rate(indexer_events_processed_total[5m])), 1)"
    ),
    "rsky:failed_repos_ratio:rate15m": (
        "sum(rate(backfiller_repos_failed_total[15m]))"
        " / clamp_min(sum(rate(backfiller_repos_processed_total[15m]))"
        " + sum(rate(backfiller_repos_failed_total[15m])), 0.01)"
    ),
}
RECORDED = frozenset(RECORDING)


def groups() -> list[dict[str, object]]:
    """Return the rule groups as Prometheus reads them."""
    rules = [{"record": name, "expr": checked(expr)} for name, expr in RECORDING.items()]
    return [{"name": "rsky-pipeline", "rules": rules}]
