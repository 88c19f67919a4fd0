"""Counting in plain numbers on the hot path, and handing the sums to the metrics now and then."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

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
        self.label_verdicts: Counter[str] = Counter()
        self.replays = 0  # commits that were taken over before
        self.firsts = 0  # commits that no other relay brought before
        self.resyncs_spared = 0  # repos to fetch that another job takes care of
        self.gaps: Counter[str] = Counter()
        self.jumps: Counter[str] = Counter()  # of a host's numbers, by what became of them
        self.seconds: defaultdict[str, float] = defaultdict(float)  # spent on checks, by step

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time that a block takes to a step."""
        begin = perf_counter()
        try:
            yield
        finally:
            self.seconds[step] += perf_counter() - begin

    def internal_error(self) -> None:
        """Count an exception that nobody declared, in the work on one frame or account."""
        self.errors["internal_error"] += 1

    def report(self, metrics: IngesterMetrics, host: str) -> None:
        """Add everything to the metrics and start again at 0; `host` is who sent it."""
        metrics.messages.inc(self.messages)
        metrics.events.inc(self.events)
        metrics.creates.inc(self.creates)
        metrics.updates.inc(self.updates)
        metrics.deletes.inc(self.deletes)
        metrics.filtered.inc(self.filtered)
        metrics.duplicates.inc(self.duplicates)
        metrics.quarantined.inc(self.quarantined)
        metrics.labeler_events.inc(self.labeler_events)
        metrics.resyncs_spared.inc(self.resyncs_spared)
        if self.replays:
            metrics.replays.labels(host).inc(self.replays)
        if self.firsts:
            metrics.firsts.labels(host).inc(self.firsts)
        for step, seconds in self.seconds.items():
            metrics.check_seconds.labels(step).inc(seconds)
        for reason, count in self.errors.items():
            metrics.error(reason, count)
        for name, count in self.infos.items():
            metrics.infos.labels(name if name in INFO_NAMES else "other").inc(count)
        for metric, counts in (
            (metrics.frames, self.frames),
            (metrics.resyncs, self.resyncs),
            (metrics.verdicts, self.verdicts),
            (metrics.label_verdicts, self.label_verdicts),
            (metrics.gaps, self.gaps),
            (metrics.seq_jumps, self.jumps),
        ):
            for value, count in counts.items():
                metric.labels(value).inc(count)
        self.__init__()  # type: ignore[misc]  # the same fields, all at 0 again
