"""The dashboards: for each role every metric that it declares, and an overview for everybody.

A role's dashboard is made from the declarations alone, so a new metric is on it by itself; it is
only sorted into rows here.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rsky_pipeline.development.monitoring.expressions import checked, natural, unit
from rsky_pipeline.development.monitoring.overview import overview_rows
from rsky_pipeline.development.monitoring.panels import Panel, Row, dashboard
from rsky_pipeline.development.monitoring.recording import RECORDED
from rsky_pipeline.observability.catalogue import (
    Declared,
    original_stream_metrics,
    own_metrics,
    process_metrics,
)

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
