"""Stream lengths read back from a worker's own gauges, for its health document."""

from prometheus_client import CollectorRegistry

LENGTH = "rsky_stream_length"


def stream_lengths(registry: CollectorRegistry) -> dict[str, int]:
    """Return the length of every stream that this worker watches, as it last saw it."""
    only_lengths = registry.restricted_registry([LENGTH])
    return {
        sample.labels["stream"]: int(sample.value)
        for metric in only_lengths.collect()
        for sample in metric.samples
        if sample.name == LENGTH
    }
