"""The findings of a worker's self-check as metrics; the rules define which series exist."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry

from rsky_pipeline.observability.declaring import Declarer

ACTIVE = "rsky_finding"
WARNS, FAILS = 1, 2  # values of a finding

Series = tuple[str, str]  # finding and subject, a stream or empty


class FindingMetrics:
    """The findings of one worker as metrics; every series exists at 0 from the start."""

    def __init__(self, registry: CollectorRegistry, series: Iterable[Series]) -> None:
        self._series, declare = tuple(series), Declarer(registry, "rsky")
        self.active = declare.gauge(
            "finding", "1 while a rule warns, 2 while it fails", finding=(), subject=()
        )
        for finding in self._series:
            self.active.labels(*finding)
        self.begun = declare.counter(
            "findings", "How often a finding became active",
            finding=(name for name, _ in self._series),
        )  # fmt: skip
        self._now: set[Series] = set()

    def show(self, levels: Mapping[Series, int]) -> list[Series]:
        """Set the metrics to these findings, and return the newly active ones."""
        for series in self._series:
            self.active.labels(*series).set(levels.get(series, 0))
        new = [series for series in levels if series not in self._now]
        for name, _ in new:
            self.begun.labels(name).inc()
        self._now = set(levels)
        return new


def active_findings(registry: CollectorRegistry, least: int = WARNS) -> list[str]:
    """Return a worker's findings of at least this level, `KIND` or `KIND SUBJECT`, sorted."""
    return sorted(
        f"{sample.labels['finding']} {sample.labels['subject']}".strip()
        for metric in registry.restricted_registry([ACTIVE]).collect()
        for sample in metric.samples
        if sample.value >= least
    )
