"""Reading the state of all streams into the gauges of `observability.streams`."""

from collections.abc import Sequence

from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.lag import StreamReport, collect
from rsky_pipeline.streams.names import STREAMS, dead_letters
from rsky_pipeline.streams.self_check import SelfCheck


def watch(
    store: Store,
    metrics: StreamMetrics,
    streams: Sequence[str] = STREAMS,
    self_check: SelfCheck | None = None,
) -> list[StreamReport]:
    """Look at the streams once, set the gauges, judge what is found, and return it.

    Raises StoreUnavailable and StoreRejected; the gauges then keep what they showed.
    """
    reports = collect(store, streams)
    buried = [store.call("XLEN", dead_letters(report.name)) for report in reports]
    for report, count in zip(reports, buried, strict=True):
        metrics.set_length(report.name, report.length)
        metrics.dead_letters.labels(report.name).set(count)
        for group in report.groups:
            metrics.set_group(
                report.name,
                group.name,
                lag=group.lag,
                pending=group.pending,
                oldest_seconds=group.oldest_unacked_age_seconds,
            )
        # A group that does not exist yet will begin with the first entry.
        for name in metrics.groups.get(report.name, ()):
            if report.group(name) is None:
                age = report.oldest_age_seconds
                metrics.set_group(
                    report.name, name, lag=report.length, pending=0, oldest_seconds=age
                )
    if self_check is not None:
        self_check.look(store, reports)
    return reports
