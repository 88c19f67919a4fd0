"""The overview: is it well, does it keep up, is anything lost on the way."""

from rsky_pipeline.development.monitoring.expressions import checked
from rsky_pipeline.development.monitoring.panels import Panel, Row
from rsky_pipeline.development.monitoring.recording import RECORDED
from rsky_pipeline.health.rules import OLDEST


def _panel(title: str, *queries: tuple[str, str], unit: str = "short", **options: object) -> Panel:
    for expression, _ in queries:
        checked(expression, RECORDED)
    return Panel(title, queries, unit, **options)  # type: ignore[arg-type]


def _stat(title: str, expression: str, unit: str = "short", **options: object) -> Panel:
    return _panel(title, (expression, ""), unit=unit, kind="stat", **options)


def overview_rows() -> list[Row]:
    """Return the rows of the overview."""
    return [_state(), _flow(), _streams(), _history(), _processes()]


def _state() -> Row:
    live = 'rsky:oldest_unacked_seconds:max{stream="firehose_live"}'
    panels = (
        _stat("Processes ready", "sum(rsky_process_up)", red_below=1),
        _stat("Crash loops", "sum(rsky_process_crash_looping)", red_from=1),
        _stat("Relays and labelers connected", "sum(ingester_websocket_connections)", red_below=1),
        _stat("Oldest live event not indexed", f"max({live})", "s", red_from=OLDEST.limits.warn),
        _stat("Reading held up", "max(ingester_backpressure_active)", red_from=1),
        _stat("Dead letters", "sum(rsky:dead_letters:max)", red_from=1),
        _stat(
            "Findings of the workers",
            "count(max by (finding, subject) (rsky_finding) > 0) or vector(0)",
            red_from=1,
        ),
    )
    return Row("State", panels, columns=4, height=4)


def _flow() -> Row:
    lag = 'max(indexer_event_lag_seconds{stream="firehose_live"})'
    queue = "sum by (le, stream) (rate(indexer_queue_seconds_bucket[$__rate_interval]))"
    panels = (
        _panel(
            "Events: from the relay, into the stream, into the database",
            ("rsky:relay_messages:rate1m", "relay messages"),
            ("rsky:live_events:rate1m", "live events"),
            ("rsky:indexed_events:rate1m", "indexed, live and backfill"),
            unit="ops",
        ),
        _panel(
            "Age of the newest event",
            ("max(ingester_event_lag_seconds)", "when appended"),
            (lag, "when indexed"),
            unit="s",
        ),
        _panel(
            "Time in the stream (99th percentile)",
            (f"histogram_quantile(0.99, {queue})", "{{stream}}"),
            unit="s",
        ),
        _panel(
            "Rows of record",
            ("sum by (outcome) (rate(indexer_record_changes_total[$__rate_interval]))",
             "{{outcome}}"),
            unit="ops",
        ),
        _panel(
            "Errors",
            ("sum(rate(ingester_errors_total[$__rate_interval]))", "ingester"),
            ("sum(rate(indexer_expected_errors_total[$__rate_interval]))", "indexer: refused"),
            ("sum(rate(indexer_unexpected_errors_total[$__rate_interval]))", "indexer: unexpected"),
            ("sum(rate(backfiller_repos_failed_total[$__rate_interval]))", "backfiller"),
            unit="ops",
        ),
        _panel(
            "Labels",
            ("sum(rate(ingester_labels_written_total[$__rate_interval]))", "appended"),
            ("sum(rate(indexer_labels_processed_total[$__rate_interval]))", "processed"),
            unit="ops",
        ),
    )  # fmt: skip
    return Row("Live", panels)


def _streams() -> Row:
    panels = (
        _panel("Length", ("rsky:stream_length:max", "{{stream}}")),
        _panel("Not delivered", ("rsky:group_lag:max", "{{stream}}, {{group}}")),
        _panel("Delivered, not acknowledged", ("rsky:group_pending:max", "{{stream}}, {{group}}")),
        _panel(
            "Oldest entry not finished",
            ("rsky:oldest_unacked_seconds:max", "{{stream}}, {{group}}"),
            unit="s",
        ),
        _panel("Dead letters", ("rsky:dead_letters:max", "{{stream}}")),
        _panel(
            "Trimmed",
            ("sum(rate(indexer_entries_trimmed_total[$__rate_interval]))", "entries"),
            unit="ops",
        ),
    )
    return Row("Streams", panels)


def _history() -> Row:
    panels = (
        _panel("Repos fetched", ("rsky:repos:rate5m", "repos"), unit="ops"),
        _panel("Records queued", ("rsky:backfilled_records:rate5m", "records"), unit="ops"),
        _panel(
            "Failed attempts",
            (("sum by (reason) (rate(backfiller_failures_total[$__rate_interval])) > 0"
             " or sum(rate(backfiller_failures_total[$__rate_interval]))"), "{{reason}}"),
            unit="ops",
        ),
        _panel(
            "Repos in flight and waiting",
            ("sum(backfiller_repos_running)", "in flight"),
            ("sum(backfiller_repos_waiting)", "waiting for another attempt"),
        ),
        _panel("Repos listed", ("sum(ingester_backfill_repos_fetched_total)", "repos")),
        _stat("Listing complete", "min(ingester_backfill_complete)"),
    )  # fmt: skip
    return Row("History", panels)


def _processes() -> Row:
    panels = (
        _panel("Ready", ("rsky_process_up", "{{process}}")),
        _panel("Memory", ("rsky_process_resident_bytes", "{{process}}"), unit="bytes"),
        _panel(
            "CPU",
            ('rate(process_cpu_seconds_total{job=~"rsky-.*"}[$__rate_interval])',
             "{{job}} {{instance}}"),
            unit="percentunit",
        ),
        _panel("Restarts", ("rsky_process_restarts_total", "{{process}}")),
    )  # fmt: skip
    return Row("Processes", panels, columns=4)
