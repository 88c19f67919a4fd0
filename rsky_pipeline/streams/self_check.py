"""A worker's look at itself: takes a sample with each look at the streams, and tells what is wrong.

It runs in the loop that watches the streams anyway, and asks Redis for two things more.
"""

import logging
import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.expectations import expected_band, high_water_marks
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import FIREHOSE_LIVE, LABEL_LIVE
from rsky_pipeline.observability.findings import KINDS, FindingMetrics
from rsky_pipeline.observability.readings import Reader, missing_metrics
from rsky_pipeline.observability.rules import (
    GroupSample,
    History,
    Limits,
    Sample,
    StreamSample,
)
from rsky_pipeline.runtime.logging import Throttled
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.lag import GroupReport, StreamReport
from rsky_pipeline.streams.memory import server_memory
from rsky_pipeline.streams.scan import nature, newest

_log = logging.getLogger(__name__)
_NEWEST = 50  # entries of the live stream that are looked at each time
_AGAIN_SECONDS = 60.0  # between two log lines about one finding


class SelfCheck:
    """The self-check of one worker; make it before the metrics are served."""

    def __init__(
        self,
        registry: CollectorRegistry,
        role: str,
        settings: Settings,
        streams: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._role = role
        self._clock = clock
        self._marks = high_water_marks(settings)
        self._metrics = FindingMetrics(registry, streams)
        self._reader = Reader(registry, role)
        band = expected_band(settings)
        # One worker judges the rate: the one that makes it.
        rated = role == "ingester" and not band.why_not
        self._history = History(
            Limits(
                (FIREHOSE_LIVE, LABEL_LIVE), FIREHOSE_LIVE,
                band.low if rated else 0.0, band.high if rated else 0.0,
            )
        )  # fmt: skip
        self._quiet = Throttled(_AGAIN_SECONDS)
        # Counters begin at 0 now; what happens before the first look is to count.
        values = self._reader.values()
        self._history.observe(Sample(clock(), loops=values.loops, written=values.written))

    def look(self, store: Store, reports: Sequence[StreamReport]) -> None:
        """Take a sample, show the findings in the metrics, log them now and then.

        Raises StoreUnavailable and StoreRejected; findings then stay as they were.
        """
        memory = server_memory(store)
        misplaced = self._misplaced(store, reports)
        values = self._reader.values()
        sample = Sample(
            moment=self._clock(),
            streams=tuple(self._stream(report, misplaced) for report in reports),
            loops=values.loops,
            written=values.written,
            missing_metrics=missing_metrics(self._registry, self._role),
            memory_used=memory.used,
            memory_limit=memory.limit,
            messages=values.messages,
            cursor=values.cursor,
            waited_seconds=values.waited_seconds,
            lag_seconds=values.lag_seconds,
        )
        found = self._history.observe(sample)
        self._metrics.show(found)
        for item in found:
            held = self._quiet.allow(f"{item.kind} {item.subject}")
            if held is not None:
                extra = {
                    "finding": item.kind, "subject": item.subject, "detail": item.detail,
                    "to_do": KINDS[item.kind].remedy,
                }  # fmt: skip
                _log.warning("something is wrong", extra=extra)

    def _misplaced(self, store: Store, reports: Sequence[StreamReport]) -> int:
        """Count repo events among the newest entries of the live stream; one worker looks."""
        if self._role != "ingester" or not any(
            report.name == FIREHOSE_LIVE and report.length for report in reports
        ):
            return 0
        entries = newest(store, FIREHOSE_LIVE, _NEWEST)
        return sum(nature(entry.fields).kind == "repo" for entry in entries)

    def _stream(self, report: StreamReport, misplaced: int) -> StreamSample:
        return StreamSample(
            report.name,
            report.length,
            report.added if report.counts_added else -1,
            report.first_id,
            self._marks.get(report.name),
            misplaced if report.name == FIREHOSE_LIVE else 0,
            tuple(_group(group) for group in report.groups),
        )


def _group(group: GroupReport) -> GroupSample:
    return GroupSample(
        group.name, group.lag, group.pending, group.last_delivered_id, group.oldest_pending_id,
        group.read,
    )  # fmt: skip
