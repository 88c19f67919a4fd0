"""Declaring the metrics of a process, with every series at 0 from the first scrape on."""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Metric = TypeVar("Metric", Counter, Gauge, Histogram)


class Declarer:
    """Makes metrics whose names begin with a prefix.

    Keywords name the labels, each with its values: the series of all their combinations exist at
    once. A label without values leaves that to the caller.
    """

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        self._registry = registry
        self._prefix = prefix

    def counter(self, name: str, help: str, /, **labels: Iterable[str]) -> Counter:
        """Declare `PREFIX_NAME_total`."""
        metric = Counter(
            f"{self._prefix}_{name}_total", help, list(labels), registry=self._registry
        )
        return _with_series(metric, labels.values())

    def gauge(self, name: str, help: str, /, **labels: Iterable[str]) -> Gauge:
        """Declare `PREFIX_NAME`."""
        metric = Gauge(f"{self._prefix}_{name}", help, list(labels), registry=self._registry)
        return _with_series(metric, labels.values())

    def histogram(
        self, name: str, help: str, buckets: Sequence[float], /, **labels: Iterable[str]
    ) -> Histogram:
        """Declare `PREFIX_NAME` with the upper bounds of its buckets."""
        metric = Histogram(
            f"{self._prefix}_{name}", help, list(labels), registry=self._registry, buckets=buckets
        )
        return _with_series(metric, labels.values())


def _with_series(metric: Metric, labels: Iterable[Iterable[str]]) -> Metric:
    values = list(labels)
    for series in product(*values) if values else ():
        metric.labels(*series)
    return metric
