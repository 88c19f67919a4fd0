"""Lengths, lag and age of the streams, exported by every worker whether traffic flows or not.

The last figures are read back from the gauges for the worker's health document.
"""

from collections.abc import Collection, Iterator, Mapping

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.samples import Sample

from rsky_pipeline.observability.declaring import Declarer

LENGTH = "rsky_stream_length"
LETTERS = "rsky_stream_dead_letters"
LAG = "rsky_stream_group_lag"
PENDING = "rsky_stream_group_pending"

# The names of the original services, by the role that exports them and the stream.
_ORIGINAL_NAMES: Mapping[str, Mapping[str, str]] = {
    "ingester": {
        "firehose_live": "ingester_firehose_live_length",
        "firehose_backfill": "ingester_firehose_backfill_length",
        "label_live": "ingester_label_live_length",
        "repo_backfill": "ingester_repo_backfill_length",
    },
    "backfiller": {"firehose_backfill": "backfiller_output_stream_length"},
}


class StreamMetrics:
    """The stream gauges of one worker; every series exists from the start.

    `groups` names the consumer groups that are expected on each stream.
    """

    def __init__(
        self, registry: CollectorRegistry, role: str, groups: Mapping[str, tuple[str, ...]]
    ) -> None:
        declare = Declarer(registry, "rsky_stream")
        gauge, streams = declare.gauge, tuple(groups)
        self.length = gauge("length", "Entries in a stream", stream=streams)
        self.dead_letters = gauge(
            "dead_letters", "Entries in a stream's dead-letter stream", stream=streams
        )
        self.lag = gauge("group_lag", "Entries not delivered yet", stream=(), group=())
        self.pending = gauge(
            "group_pending", "Entries delivered, not acknowledged", stream=(), group=()
        )
        self.oldest = gauge(
            "oldest_unacked_seconds", "Age of the oldest entry that a group has not acknowledged",
            stream=(), group=(),
        )  # fmt: skip
        self.errors = declare.counter("poll_errors", "Failed looks at the streams")
        self._originals = {
            stream: Gauge(name, f"Entries in {stream}", registry=registry)
            for stream, name in _ORIGINAL_NAMES.get(role, {}).items()
        }
        self.groups = groups
        for stream, names in groups.items():
            for group in names:
                for metric in (self.lag, self.pending, self.oldest):
                    metric.labels(stream, group)

    def set_length(self, stream: str, length: int) -> None:
        """Note a stream's length, under both of its names."""
        self.length.labels(stream).set(length)
        if stream in self._originals:
            self._originals[stream].set(length)

    def set_group(
        self, stream: str, group: str, *, lag: int, pending: int, oldest_seconds: float
    ) -> None:
        """Note how far a group is behind."""
        self.lag.labels(stream, group).set(lag)
        self.pending.labels(stream, group).set(pending)
        self.oldest.labels(stream, group).set(oldest_seconds)


def stream_lengths(registry: CollectorRegistry) -> dict[str, int]:
    """Return the length of every stream that this worker watches, as it last saw it."""
    return {sample.labels["stream"]: int(sample.value) for sample in _samples(registry, LENGTH)}


def letters_by_stream(registry: CollectorRegistry) -> dict[str, int]:
    """Return the number of dead letters of every stream that this worker watches."""
    return {sample.labels["stream"]: int(sample.value) for sample in _samples(registry, LETTERS)}


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
