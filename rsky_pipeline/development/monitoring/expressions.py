"""PromQL about declared metrics; naming one that nobody declares is an error."""

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


def names_in(expression: str) -> set[str]:
    """Return the metrics and recording rules of ours that an expression reads."""
    without_strings = re.sub(r'"[^"]*"', '""', expression)
    found = set(_OURS.findall(without_strings))
    return {_base(name) for name in found}


def checked(expression: str, recorded: frozenset[str] = frozenset()) -> str:
    """Return an expression. Raises ValueError if it reads what is neither declared nor recorded."""
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
    """Return Grafana's unit of what `natural` shows."""
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
