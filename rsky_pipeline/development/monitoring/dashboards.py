"""The dashboards: for each role every metric that it declares, and an overview for everybody.

A role's dashboard is made from the declarations alone, so a new metric is on it by itself; it is
only sorted into rows here. The overview names its metrics; one that nobody declares is an error.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rsky_pipeline.development.monitoring.expressions import RECORDED, checked, natural, unit
from rsky_pipeline.health.rules import OLDEST
from rsky_pipeline.observability.catalogue import (
    Declared,
    original_stream_metrics,
    own_metrics,
    process_metrics,
)

WIDTH = 24
SOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: each query with its legend (a label in braces, or a text)."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"  # or stat
    help: str = ""
    red_from: float | None = None
    red_below: float | None = None

    def document(self, number: int, position: dict[str, int]) -> dict[str, Any]:
        """Return the panel as Grafana reads it."""
        document: dict[str, Any] = {
            "id": number,
            "title": self.title,
            "type": self.kind,
            "description": self.help,
            "datasource": SOURCE,
            "gridPos": position,
            "fieldConfig": {"defaults": {"unit": self.unit, "thresholds": self._thresholds()}},
            "targets": [
                {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expr,
                 "legendFormat": legend}
                for index, (expr, legend) in enumerate(self.queries)
            ],
        }  # fmt: skip
        if self.kind == "stat":
            document["options"] = {"colorMode": "background", "graphMode": "area"}
        return document

    def _thresholds(self) -> dict[str, Any]:
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
        if self.red_from is not None:
            steps.append({"color": "red", "value": self.red_from})
        if self.red_below is not None:
            steps = [{"color": "red", "value": None}, {"color": "green", "value": self.red_below}]
        return {"mode": "absolute", "steps": steps}


@dataclass(frozen=True, slots=True)
class Row:
    """A titled row of panels, `columns` beside each other."""

    title: str
    panels: Sequence[Panel]
    columns: int = 3
    height: int = 7


def dashboard(uid: str, title: str, rows: Iterable[Row]) -> dict[str, Any]:
    """Return a dashboard as Grafana imports it."""
    placed: list[dict[str, Any]] = []
    top = 0
    for row in rows:
        if not row.panels:
            continue
        placed.append(
            {"id": len(placed) + 1, "type": "row", "title": row.title, "collapsed": False,
             "panels": [], "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1}}
        )  # fmt: skip
        top += 1
        width = WIDTH // row.columns
        for index, panel in enumerate(row.panels):
            line, column = divmod(index, row.columns)
            position = {"x": column * width, "y": top + line * row.height, "w": width,
                        "h": row.height}  # fmt: skip
            placed.append(panel.document(len(placed) + 1, position))
        top += -(-len(row.panels) // row.columns) * row.height
    return {
        "uid": uid,
        "title": title,
        "tags": ["rsky-pipeline"],
        "schemaVersion": 38,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource",
                 "query": "prometheus", "current": {}, "hide": 0}
            ]
        },
        "annotations": {"list": []},
        "panels": placed,
    }  # fmt: skip


# --- the dashboards of the roles, and the overview ------------------------------------------------

ROLES = ("ingester", "indexer", "backfiller")
# The rows of a role's dashboard: a metric is in the first whose pattern its name matches.
_ROWS: Sequence[tuple[str, str]] = (
    ("Trouble", (r"error|fail|refused|rejected|dead_letter|conflict|quarantin|unreadable|missing"
                r"|retries|disconnect|stale|gaps?_")),
    ("Lag and latency", r"lag|_seconds$|timestamp|queue|batch_|wait"),
    ("State", (r"connections|in_memory|backpressure|pending|active|running|reserved|length|seq$"
              r"|complete|host")),
    ("Traffic", r""),
)  # fmt: skip
_PROCESS = {
    "process_cpu_seconds_total": "CPU",
    "process_resident_memory_bytes": "Memory",
    "process_open_fds": "Open files",
    "process_start_time_seconds": "Started",
    "rsky_build_info": "Build",
}


def dashboards() -> Mapping[str, dict[str, Any]]:
    """Return every dashboard by the name of its file."""
    found = {
        "overview": dashboard("rsky-pipeline-overview", "rsky-pipeline: overview", overview_rows())
    }
    for role in ROLES:
        title = f"rsky-pipeline: {role}"
        found[role] = dashboard(f"rsky-pipeline-{role}", title, _role_rows(role))
    return found


def _role_rows(role: str) -> list[Row]:
    metrics = [*own_metrics(role), *original_stream_metrics(role)]
    rows = {title: list[Panel]() for title, _ in reversed(_ROWS)}
    for metric in metrics:
        rows[_row_of(metric.name)].append(_panel(metric, role))
    processes = [_process_panel(metric, role) for metric in process_metrics()
                 if metric.name in _PROCESS]  # fmt: skip
    return [*(Row(title, panels) for title, panels in rows.items()), Row("Process", processes, 5)]


def _row_of(name: str) -> str:
    return next(title for title, pattern in _ROWS if re.search(pattern, name))


def _panel(metric: Declared, role: str) -> Panel:
    words = metric.name.removeprefix(f"{role}_").removesuffix("_total").replace("_", " ")
    legend = " ".join(f"{{{{{label}}}}}" for label in metric.labels) or words
    if metric.kind == "histogram":
        words += " (99th percentile)"
    elif metric.kind == "counter":
        words += " per second"
    query = checked(natural(metric), RECORDED)
    return Panel(words.capitalize(), ((query, legend),), unit(metric), help=metric.help)


def _process_panel(metric: Declared, role: str) -> Panel:
    title, chosen = _PROCESS[metric.name], f'{metric.name}{{job="rsky-{role}"}}'
    if metric.name == "process_cpu_seconds_total":
        query = (f"rate({chosen}[$__rate_interval])", "{{instance}}")
        return Panel(title, (query,), "percentunit", help=metric.help)
    if metric.name == "process_start_time_seconds":
        return Panel("Uptime", ((f"time() - {chosen}", "{{instance}}"),), "s", help=metric.help)
    legend = "{{version}} {{commit}}" if metric.name == "rsky_build_info" else "{{instance}}"
    return Panel(title, ((chosen, legend),), unit(metric), help=metric.help)


def _queried(
    title: str, *queries: tuple[str, str], unit: str = "short", **options: object
) -> Panel:
    for expression, _ in queries:
        checked(expression, RECORDED)
    return Panel(title, queries, unit, **options)  # type: ignore[arg-type]


def _stat(title: str, expression: str, unit: str = "short", **options: object) -> Panel:
    return _queried(title, (expression, ""), unit=unit, kind="stat", **options)


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
        _queried(
            "Events: from the relay, into the stream, into the database",
            ("rsky:relay_messages:rate1m", "relay messages"),
            ("rsky:live_events:rate1m", "live events"),
            ("rsky:indexed_events:rate1m", "indexed, live and backfill"),
            unit="ops",
        ),
        _queried(
            "Age of the newest event",
            ("max(ingester_event_lag_seconds)", "when appended"),
            (lag, "when indexed"),
            unit="s",
        ),
        _queried(
            "Time in the stream (99th percentile)",
            (f"histogram_quantile(0.99, {queue})", "{{stream}}"),
            unit="s",
        ),
        _queried(
            "Rows of record",
            ("sum by (outcome) (rate(indexer_record_changes_total[$__rate_interval]))",
             "{{outcome}}"),
            unit="ops",
        ),
        _queried(
            "Errors",
            ("sum(rate(ingester_errors_total[$__rate_interval]))", "ingester"),
            ("sum(rate(indexer_expected_errors_total[$__rate_interval]))", "indexer: refused"),
            ("sum(rate(indexer_unexpected_errors_total[$__rate_interval]))", "indexer: unexpected"),
            ("sum(rate(backfiller_repos_failed_total[$__rate_interval]))", "backfiller"),
            unit="ops",
        ),
        _queried(
            "Labels",
            ("sum(rate(ingester_labels_written_total[$__rate_interval]))", "appended"),
            ("sum(rate(indexer_labels_processed_total[$__rate_interval]))", "processed"),
            unit="ops",
        ),
    )  # fmt: skip
    return Row("Live", panels)


def _streams() -> Row:
    panels = (
        _queried("Length", ("rsky:stream_length:max", "{{stream}}")),
        _queried("Not delivered", ("rsky:group_lag:max", "{{stream}}, {{group}}")),
        _queried(
            "Delivered, not acknowledged", ("rsky:group_pending:max", "{{stream}}, {{group}}")
        ),
        _queried(
            "Oldest entry not finished",
            ("rsky:oldest_unacked_seconds:max", "{{stream}}, {{group}}"),
            unit="s",
        ),
        _queried("Dead letters", ("rsky:dead_letters:max", "{{stream}}")),
        _queried(
            "Trimmed",
            ("sum(rate(indexer_entries_trimmed_total[$__rate_interval]))", "entries"),
            unit="ops",
        ),
    )
    return Row("Streams", panels)


def _history() -> Row:
    panels = (
        _queried("Repos fetched", ("rsky:repos:rate5m", "repos"), unit="ops"),
        _queried("Records queued", ("rsky:backfilled_records:rate5m", "records"), unit="ops"),
        _queried(
            "Failed attempts",
            (("sum by (reason) (rate(backfiller_failures_total[$__rate_interval])) > 0"
             " or sum(rate(backfiller_failures_total[$__rate_interval]))"), "{{reason}}"),
            unit="ops",
        ),
        _queried(
            "Repos in flight and waiting",
            ("sum(backfiller_repos_running)", "in flight"),
            ("sum(backfiller_repos_waiting)", "waiting for another attempt"),
        ),
        _queried("Repos listed", ("sum(ingester_backfill_repos_fetched_total)", "repos")),
        _stat("Listing complete", "min(ingester_backfill_complete)"),
    )  # fmt: skip
    return Row("History", panels)


def _processes() -> Row:
    panels = (
        _queried("Ready", ("rsky_process_up", "{{process}}")),
        _queried("Memory", ("rsky_process_resident_bytes", "{{process}}"), unit="bytes"),
        _queried(
            "CPU",
            ('rate(process_cpu_seconds_total{job=~"rsky-.*"}[$__rate_interval])',
             "{{job}} {{instance}}"),
            unit="percentunit",
        ),
        _queried("Restarts", ("rsky_process_restarts_total", "{{process}}")),
    )  # fmt: skip
    return Row("Processes", panels, columns=4)
