"""Reading a worker's own metrics back, for the rules that judge it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample as MetricSample

from rsky_pipeline.configuration.topology import FIREHOSE_BACKFILL, FIREHOSE_LIVE
from rsky_pipeline.observability.rules import Loop, Written

Series = tuple[str, Mapping[str, str]]  # name of a sample, labels that it must have


def _series(name: str, **labels: str) -> Series:
    return name, labels


# For each role the activities that may turn in circles: what is counted when one is tried or
# fails, and what is counted when it comes further.
LOOPS: Mapping[str, tuple[tuple[str, tuple[Series, ...], tuple[Series, ...]], ...]] = {
    "ingester": (
        (
            "appending to Redis",
            (
                _series("ingester_store_retries_total", action="unavailable"),
                _series("ingester_store_retries_total", action="rejected"),
            ),
            (
                _series("ingester_stream_events_total"),
                _series("ingester_labels_written_total"),
                _series("ingester_backfill_repos_written_total"),
            ),
        ),
        (
            "connecting to relays",
            (_series("ingester_disconnects_total"),),
            (_series("ingester_firehose_messages_total"), _series("ingester_labeler_events_total")),
        ),
    ),
    "backfiller": (
        (
            "fetching repos",
            (_series("backfiller_repos_failed_total"),),
            (
                _series("backfiller_repos_processed_total"),
                _series("backfiller_repos_dead_lettered_total"),
            ),
        ),
    ),
    "indexer": (
        (
            "applying batches",
            (_series("indexer_unexpected_errors_total"),),
            (_series("indexer_batches_total"),),
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Values:
    """What the rules need of a worker's metrics; None where its role has no such metric."""

    loops: tuple[Loop, ...] = ()
    written: tuple[Written, ...] = ()
    messages: float | None = None
    cursor: float | None = None
    waited_seconds: float = 0.0
    lag_seconds: float = 0.0


class Reader:
    """Reads the metrics of one worker."""

    def __init__(self, registry: CollectorRegistry, role: str) -> None:
        self._registry = registry
        self._role = role

    def values(self) -> Values:
        """Return what the metrics say now."""
        loops = tuple(
            Loop(name, self._sum(tried), self._sum(done))
            for name, tried, done in LOOPS.get(self._role, ())
        )
        if self._role == "indexer":
            streams = (FIREHOSE_LIVE, FIREHOSE_BACKFILL)
            return Values(loops, tuple(self._written(stream) for stream in streams))
        if self._role != "ingester":
            return Values(loops)
        return Values(
            (*self._listings(), *loops),
            messages=self.value("ingester_firehose_messages_total"),
            cursor=self.value("ingester_cursor_seq", stream=FIREHOSE_LIVE),
            waited_seconds=self.value("ingester_backpressure_seconds_total"),
            lag_seconds=self.value("ingester_event_lag_seconds"),
        )

    def _listings(self) -> Iterator[Loop]:
        """Each listing is a loop of its own: one that moves must not hide one that does not.

        One at its end is left out: only the repos are still tried then that its host cannot list,
        which is meant.
        """
        ended = self._by_listing("ingester_listing_done")
        pages = self._by_listing("ingester_listing_pages_total")
        holes = self.value("ingester_backfill_cursor_skips_total")
        for listing, failures in self._by_listing("ingester_listing_failures_total").items():
            host, source = listing
            if not ended.get(listing):
                yield Loop(f"{source} of {host}", failures, pages.get(listing, 0.0) + holes)

    def _by_listing(self, name: str) -> dict[tuple[str, str], float]:
        return {
            (sample.labels["host"], sample.labels["source"]): sample.value
            for sample in self._samples(name)
        }

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with these labels."""
        wanted = labels.items()
        return sum(
            sample.value for sample in self._samples(name) if wanted <= sample.labels.items()
        )

    def _samples(self, name: str) -> Iterator[MetricSample]:
        for metric in self._registry.restricted_registry([name]).collect():
            yield from (sample for sample in metric.samples if sample.name == name)

    def _sum(self, series: tuple[Series, ...]) -> float:
        return sum(self.value(name, **labels) for name, labels in series)

    def _written(self, stream: str) -> Written:
        live = stream == FIREHOSE_LIVE
        return Written(
            stream,
            events=self.value("indexer_batch_events_sum", stream=stream),
            stale=self.value("indexer_stale_writes_total", stream=stream),
            misplaced=self.value("indexer_misplaced_events_total") if live else 0.0,
        )


def missing_metrics(registry: CollectorRegistry, role: str) -> tuple[str, ...]:
    """Return the metrics that a role declares and its registry does not export."""
    there = {sample.name for metric in registry.collect() for sample in metric.samples}
    return tuple(name for name, sample in _declared(role) if sample not in there)


@cache
def _declared(role: str) -> tuple[tuple[str, str], ...]:
    """Return each declared metric with the name of a sample that shows it."""
    from rsky_pipeline.observability.catalogue import declared  # which imports all roles' metrics

    return tuple(
        (metric.name, f"{metric.name}{'_count' if metric.kind == 'histogram' else ''}")
        for metric in declared(role).values()
    )
