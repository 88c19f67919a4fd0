"""What a worker says about streams in its health is what its gauges say."""

from prometheus_client import CollectorRegistry

from rsky_pipeline.observability.streams import StreamMetrics, entries_waiting, stream_lengths


def test_lengths_and_waiting_entries_are_read_back() -> None:
    registry = CollectorRegistry()
    metrics = StreamMetrics(
        registry, "indexer", {"firehose_live": ("g", "h"), "label_live": ("g",)}
    )
    assert stream_lengths(registry) == {"firehose_live": 0, "label_live": 0}
    metrics.set_length("firehose_live", 12)
    metrics.lag.labels("firehose_live", "g").set(5)
    metrics.pending.labels("firehose_live", "h").set(2)
    metrics.lag.labels("label_live", "g").set(100)
    assert stream_lengths(registry)["firehose_live"] == 12
    assert entries_waiting(registry, {"firehose_live"}) == 7
    assert entries_waiting(registry, {"repo_backfill"}) is None
    assert stream_lengths(CollectorRegistry()) == {}
