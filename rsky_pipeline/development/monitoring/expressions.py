"""PromQL about declared metrics, and the figures that dashboards and alerts share.

Naming a metric that nobody declares is an error.
"""

import re
from collections.abc import Mapping

from rsky_pipeline.observability.catalogue import PROCESSES, Declared, declared

DECLARED: Mapping[str, Declared] = {
    name: metric for process in PROCESSES for name, metric in declared(process).items()
}
_SUFFIXES = ("_bucket", "_sum", "_count")
# Names with one of the prefixes that all our metrics and recording rules have.
_OURS = re.compile(r"\b(?:rsky_|rsky:|ingester_|indexer_|backfiller_)[a-z0-9_:]+\b")
# Figures that several workers export alike, or that do not add up: the largest counts.
_LARGEST = re.compile(
    r"^rsky_stream_(?!poll)|_(?:length|seq|timestamp_seconds|lag_seconds|complete)$"
)

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


def names_in(expression: str) -> set[str]:
    """Return the metrics and recording rules of ours that an expression reads."""
    without_strings = re.sub(r'"[^"]*"', '""', expression)
    found = set(_OURS.findall(without_strings))
    return {_base(name) for name in found}


def checked(expression: str, recorded: frozenset[str] = frozenset()) -> str:
    """Return an expression. Raises ValueError if it reads an undeclared metric or recording."""
    unknown = names_in(expression) - DECLARED.keys() - recorded
    if unknown:
        raise ValueError(f"{expression}: nobody declares {', '.join(sorted(unknown))}")
    return expression


def natural(metric: Declared) -> str:
    """Return the expression that shows a metric best, by its kind and its labels."""
    by = f" by ({', '.join(metric.labels)})" if metric.labels else ""
    if metric.kind == "counter":
        return f"sum{by} (rate({metric.name}[$__rate_interval]))"
    if metric.kind == "histogram":
        labels = ", ".join(("le", *metric.labels))
        rate = f"rate({metric.name}_bucket[$__rate_interval])"
        return f"histogram_quantile(0.99, sum by ({labels}) ({rate}))"
    if metric.name.endswith("_timestamp_seconds"):
        return f"time() - max{by} ({metric.name})"
    return f"{'max' if _LARGEST.search(metric.name) else 'sum'}{by} ({metric.name})"


def unit(metric: Declared) -> str:
    """Return the Grafana unit of the expression of `natural`."""
    if "_bytes" in metric.name:
        return "Bps" if metric.kind == "counter" else "bytes"
    if metric.kind == "counter":
        return "short" if "_seconds" in metric.name else "ops"
    return "s" if metric.name.endswith("_seconds") else "short"


def _base(name: str) -> str:
    for suffix in _SUFFIXES:
        if name.endswith(suffix) and name.removesuffix(suffix) in DECLARED:
            return name.removesuffix(suffix)
    return name
