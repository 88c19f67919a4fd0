"""Reading the state of all streams into the gauges of `observability.streams`."""

from collections.abc import Sequence

from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.lag import StreamReport, inspect
from rsky_pipeline.streams.names import STREAMS, dead_letters


def watch(
    store: Store, metrics: StreamMetrics, streams: Sequence[str] = STREAMS
) -> list[StreamReport]:
    """Look at the streams once, set the gauges, and return what was found.

    Raises StoreUnavailable and StoreRejected; the gauges then keep what they showed.
    """
    reports = [inspect(store, stream) for stream in streams]
    for report in reports:
        metrics.set_length(report.name, report.length)
        metrics.dead_letters.labels(report.name).set(store.call("XLEN", dead_letters(report.name)))
        for group in report.groups:
            labels = (report.name, group.name)
            metrics.lag.labels(*labels).set(group.lag)
            metrics.pending.labels(*labels).set(group.pending)
            metrics.oldest.labels(*labels).set(group.oldest_unacknowledged_seconds)
    return reports
