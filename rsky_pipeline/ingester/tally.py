"""Counting in plain numbers on the hot path, and handing the sums to the metrics now and then."""

from collections import Counter

from rsky_pipeline.observability.ingester import INFO_NAMES, IngesterMetrics


class Tally:
    """What happened since the last `report`."""

    def __init__(self) -> None:
        self.messages = 0
        self.events = 0
        self.creates = 0
        self.updates = 0
        self.deletes = 0
        self.filtered = 0
        self.duplicates = 0
        self.quarantined = 0
        self.labeler_events = 0
        self.frames: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.resyncs: Counter[str] = Counter()
        self.infos: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()

    def report(self, metrics: IngesterMetrics) -> None:
        """Add everything to the metrics and start again at 0."""
        metrics.messages.inc(self.messages)
        metrics.events.inc(self.events)
        metrics.creates.inc(self.creates)
        metrics.updates.inc(self.updates)
        metrics.deletes.inc(self.deletes)
        metrics.filtered.inc(self.filtered)
        metrics.duplicates.inc(self.duplicates)
        metrics.quarantined.inc(self.quarantined)
        metrics.labeler_events.inc(self.labeler_events)
        for reason, count in self.errors.items():
            metrics.error(reason, count)
        for name, count in self.infos.items():
            metrics.infos.labels(name if name in INFO_NAMES else "other").inc(count)
        for metric, counts in (
            (metrics.frames, self.frames),
            (metrics.resyncs, self.resyncs),
            (metrics.verdicts, self.verdicts),
        ):
            for value, count in counts.items():
                metric.labels(value).inc(count)
        self.__init__()  # type: ignore[misc]  # the same fields, all at 0 again
