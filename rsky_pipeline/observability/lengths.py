"""Stream figures read back from a worker's own gauges, for its health document."""

from collections.abc import Collection, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample

LENGTH = "rsky_stream_length"
LAG = "rsky_stream_group_lag"
PENDING = "rsky_stream_group_pending"


def stream_lengths(registry: CollectorRegistry) -> dict[str, int]:
    """Return the length of every stream that this worker watches, as it last saw it."""
    return {sample.labels["stream"]: int(sample.value) for sample in _samples(registry, LENGTH)}


def entries_waiting(registry: CollectorRegistry, streams: Collection[str]) -> int | None:
    """Return how many entries of these streams their groups have not acknowledged yet.

    None where the worker does not watch any of them.
    """
    waiting = [
        int(sample.value)
        for name in (LAG, PENDING)
        for sample in _samples(registry, name)
        if sample.labels["stream"] in streams
    ]
    return sum(waiting) if waiting else None


def _samples(registry: CollectorRegistry, name: str) -> Iterator[Sample]:
    for metric in registry.restricted_registry([name]).collect():
        yield from (sample for sample in metric.samples if sample.name == name)
