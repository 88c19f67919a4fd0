"""All declared metrics as data: for the reference, the dashboards, and checks of a running worker.

Nothing is listed here a second time. The metrics of each process are made on a registry of their
own, exactly as the process makes them, and read back.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from rsky_pipeline.configuration.topology import FIREHOSE_LIVE, ROLE_NAMES, STREAMS
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.observability.findings import FindingMetrics
from rsky_pipeline.observability.indexer import IndexerMetrics
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.observability.server import add_process_metrics
from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.observability.supervisor import SupervisorCollector

# The metrics to look at first, with the question that each answers; the others give details.
VITAL: Mapping[str, str] = {
    "rsky_process_up": "does every process run and is it ready",
    "rsky_process_crash_looping": "does one end again and again",
    "ingester_websocket_connections": "are relays and labelers connected",
    "ingester_firehose_messages_total": "does the relay send anything",
    "ingester_stream_events_total": "do events reach the stream",
    "ingester_event_lag_seconds": "how old are events when they are appended",
    "rsky_stream_length": "is a stream near its high-water mark",
    "rsky_stream_oldest_unacked_seconds": "do consumers keep up",
    "indexer_events_processed_total": "do events reach the database",
    "indexer_event_lag_seconds": "how old are events when they are indexed",
    "rsky_stream_dead_letters": "could something not be processed",
    "backfiller_repos_processed_total": "is history fetched",
    "rsky_finding": "does the self-check of a worker find a fault",
}

SUPERVISOR = "supervisor"
PROCESSES = (*ROLE_NAMES, SUPERVISOR)
_GROUP = "group"


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric: `name` is that of its series; a histogram's have a further suffix each."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str

    @property
    def vital(self) -> bool:
        """Whether it is one of the few to look at first."""
        return self.name in VITAL


def own_metrics(process: str) -> tuple[Declared, ...]:
    """Return the metrics that only this process declares, by name. Raises KeyError for another."""
    return _read(_OWN[process])


def stream_metrics() -> tuple[Declared, ...]:
    """Return the metrics of every worker about the streams, but the original services' names."""
    return _read(lambda registry: _streams(registry, ""))


def original_stream_metrics(role: str) -> tuple[Declared, ...]:
    """Return the stream gauges that a role exports under the original services' names."""
    general = set(stream_metrics())
    found = _read(lambda registry: _streams(registry, role))
    return tuple(metric for metric in found if metric not in general)


def finding_metrics() -> tuple[Declared, ...]:
    """Return the metrics of every worker about its findings."""
    return _read(lambda registry: FindingMetrics(registry, [("finding", "subject")]))


def process_metrics() -> tuple[Declared, ...]:
    """Return the metrics of every process about itself."""
    return _read(add_process_metrics)


def declared(process: str) -> Mapping[str, Declared]:
    """Return all metrics that a kind of process exports, by name."""
    found = [*own_metrics(process), *process_metrics()]
    if process != SUPERVISOR:
        found += [*stream_metrics(), *original_stream_metrics(process), *finding_metrics()]
    return {metric.name: metric for metric in found}


def missing_metrics(registry: CollectorRegistry, process: str) -> tuple[str, ...]:
    """Return the metrics that a kind of process declares and its registry does not export."""
    there = {sample.name for metric in registry.collect() for sample in metric.samples}
    return tuple(name for name, sample in shown_by(process) if sample not in there)


@cache
def shown_by(process: str) -> tuple[tuple[str, str], ...]:
    """Return each declared metric with the name of a sample that shows it."""
    return tuple(
        (metric.name, f"{metric.name}{'_count' if metric.kind == 'histogram' else ''}")
        for metric in declared(process).values()
    )


def _ingester(registry: CollectorRegistry) -> None:
    IngesterMetrics(registry, disconnect_reasons=["r"], relays=["h"], labelers=["l"],
                    resync_reasons=["r"])  # fmt: skip


def _indexer(registry: CollectorRegistry) -> None:
    IndexerMetrics(registry, [FIREHOSE_LIVE], ["app.bsky.feed.post"])


def _supervisor(registry: CollectorRegistry) -> None:
    figures = dict.fromkeys(("restarts", "kills", "crash_looping", "rss_bytes"), 0)
    child = {"name": "ingester-1", "role": "ingester", "state": "ready", **figures}
    registry.register(SupervisorCollector(lambda: [child]))


def _streams(registry: CollectorRegistry, role: str) -> None:
    StreamMetrics(registry, role, dict.fromkeys(STREAMS, (_GROUP,)))


_OWN: Mapping[str, Callable[[CollectorRegistry], object]] = {
    "ingester": _ingester,
    "indexer": _indexer,
    "backfiller": BackfillerMetrics,
    SUPERVISOR: _supervisor,
}


def _read(declare: Callable[[CollectorRegistry], object]) -> tuple[Declared, ...]:
    registry = CollectorRegistry()
    declare(registry)
    found = [_declared(metric) for metric in registry.collect()]
    return tuple(sorted(found, key=lambda metric: metric.name))


def _declared(metric: Metric) -> Declared:
    # Every series exists from the start, so the samples show the labels.
    labels = {label for sample in metric.samples for label in sample.labels} - {"le"}
    suffix = "_total" if metric.type == "counter" else ""
    return Declared(
        f"{metric.name}{suffix}", metric.type, tuple(sorted(labels)), metric.documentation
    )
