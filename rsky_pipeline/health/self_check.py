"""A worker's check of the streams and of itself: gauges, findings and log lines.

Every role has a task that runs `watch` in its store thread every few seconds, with or without
traffic, and one that runs `watch_stores`, which needs no store to answer.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import dropwhile
from urllib.parse import unquote

import trio
from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.expectations import expected_band, high_water_marks
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import FIREHOSE_LIVE
from rsky_pipeline.health.conditions import METRICS, diagnose
from rsky_pipeline.health.rules import (
    DATA_DISK,
    DATABASE_DISK,
    HISTORY_SECONDS,
    LOG,
    OF_STORES,
    REDIS_CANNOT_SAVE,
    Rule,
    RuleVerdict,
    finding_of,
    finding_series,
    judged,
)
from rsky_pipeline.health.samples import Expectations, Exported, Labels, Sample, SampleWindow
from rsky_pipeline.observability.catalogue import missing_metrics
from rsky_pipeline.observability.findings import FAILS, WARNS, FindingMetrics
from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.findings import written
from rsky_pipeline.runtime.link import StoreTrouble, store_troubles
from rsky_pipeline.runtime.log_file import LogFile
from rsky_pipeline.runtime.logging import ThrottledLog, log_trouble
from rsky_pipeline.streams.bsync import BSYNC_LOGS
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.lag import StreamReport, collect, server_memory
from rsky_pipeline.streams.names import STREAMS, dead_letters
from rsky_pipeline.streams.scan import nature, newest

_log = logging.getLogger(__name__)
_PAGE_ENTRIES = 50  # the newest of the live stream
_STORES_SECONDS = 1.0  # between two looks at the links
_AGAIN_SECONDS = 60.0  # minimum interval of log lines about one finding


def expectations(settings: Settings, *, rated: bool = True) -> Expectations:
    """Return the expectations of the settings; `rated` if the rate of live events is judged."""
    band = expected_band(settings)
    if not rated or band.why_not:
        return Expectations(None, band.why_not if rated else "", high_water_marks(settings))
    return Expectations((band.low, band.high), "", high_water_marks(settings))


class SelfCheck:
    """The self-check of one worker; make it before the metrics are served."""

    def __init__(
        self,
        registry: CollectorRegistry,
        role: str,
        settings: Settings,
        streams: Sequence[str],
    ) -> None:
        self._registry = registry
        self._role = role
        self._data_dir = settings.data_dir
        # What a full disk of data_dir causes is no finding of its own: its remedy is the disk's.
        self._on_that_disk = tuple(_kept_in(settings))
        hosts = (settings.relays, settings.labelers) if role == "ingester" else ((), ())
        logs = BSYNC_LOGS if role == "ingester" and settings.bsync_url else ()
        relays, labelers = ([endpoint.key for endpoint in each] for each in hosts)
        self._metrics = FindingMetrics(registry, finding_series(streams, relays, labelers, logs))
        # Only the producer of live events judges their rate.
        self._expected = expectations(settings, rated=role == "ingester")
        self._throttled = ThrottledLog(_log, _AGAIN_SECONDS)
        # A sample before any work, so that events before the first check count as an increase.
        self._samples = [Sample(time.monotonic(), workers=(self._exported(),))]
        self._lock = threading.Lock()  # samples are evaluated in a thread, stores in the loop
        self._of_samples: list[RuleVerdict] = []
        self._of_stores: list[RuleVerdict] = []

    def look(self, store: Store, reports: Sequence[StreamReport]) -> list[RuleVerdict]:
        """Take a sample and evaluate the rules; findings go to metrics and log, and are returned.

        Raises StoreUnavailableError and StoreRejectedError; the metrics then keep their values.
        """
        memory = server_memory(store)
        looked_at, misplaced = self._look_for_misplaced(store, reports)
        return self.observe(
            Sample(
                time.monotonic(),
                tuple(reports),
                looked_at=looked_at,
                misplaced=misplaced,
                memory=memory,
                workers=(self._exported(),),
                missing_metrics=missing_metrics(self._registry, self._role),
            )
        )

    def _exported(self) -> Exported:
        samples: dict[str, dict[Labels, float]] = {}
        for metric in self._registry.restricted_registry(METRICS).collect():
            for sample in metric.samples:
                if sample.name in METRICS:
                    series = tuple(sorted(sample.labels.items()))
                    samples.setdefault(sample.name, {})[series] = sample.value
        return Exported(self._role, samples)

    def observe(self, sample: Sample) -> list[RuleVerdict]:
        """Add a sample to the last minutes and evaluate the rules."""
        oldest = sample.moment - HISTORY_SECONDS
        self._samples = [*dropwhile(lambda item: item.moment < oldest, self._samples), sample]
        found = [
            each
            for each in diagnose(SampleWindow(self._samples, self._expected))
            if each.status in ("warn", "fail")
        ]
        with self._lock:
            self._of_samples = found
            self._show()
        for each in found:
            self._report(each)
        return found

    def look_at_stores(
        self, troubles: Sequence[StoreTrouble], others: Sequence[RuleVerdict] = ()
    ) -> list[RuleVerdict]:
        """Judge the links that fail; nothing is asked. `others` are verdicts of other looks."""
        longest: dict[str, StoreTrouble] = {}
        for trouble in troubles:
            known = longest.setdefault(trouble.error.finding, trouble)
            if trouble.seconds > known.seconds:
                longest[trouble.error.finding] = trouble
        verdicts = [
            judged(
                OF_STORES[name], "", trouble.seconds,
                f"{trouble.error} ({trouble.purpose}, for {trouble.seconds:.0f} s)",
            )
            for name, trouble in longest.items()
        ]  # fmt: skip
        disk = self._disk()
        wrong = [each for each in (*verdicts, *others) if each.status in ("warn", "fail")]
        if disk is not None and disk.status == "fail":
            wrong = [each for each in wrong if each.rule not in self._on_that_disk]
        found = wrong if disk is None or disk.status == "pass" else [*wrong, disk]
        with self._lock:
            self._of_stores = found
            self._show()
        for each in found:
            self._report(each)
        return found

    def _disk(self) -> RuleVerdict | None:
        """Judge the file system of data_dir by its bytes and its inodes."""
        if self._data_dir is None:
            return None
        try:
            disk = os.statvfs(self._data_dir)
        except OSError:
            return None  # nobody has made it, or it is hidden: then nothing is written there
        usable, free = disk.f_blocks - disk.f_bfree + disk.f_bavail, disk.f_bavail * disk.f_frsize
        used = 1 - disk.f_bavail / usable if usable and free < DATA_DISK.least else 0.0
        files = 1 - disk.f_favail / disk.f_files if disk.f_files else 0.0
        figure = f"{self._data_dir}: {free / 1e6:,.0f} MB and {disk.f_favail:,} files are free"
        return judged(DATA_DISK, "", max(used, files), figure)

    @property
    def found(self) -> list[RuleVerdict]:
        """The findings of the last looks, one for each series, the worst of it."""
        with self._lock:
            return list(self._worst().values())

    def _worst(self) -> dict[tuple[str, str], RuleVerdict]:
        worst: dict[tuple[str, str], RuleVerdict] = {}
        for each in (*self._of_stores, *self._of_samples):
            known = worst.setdefault((finding_of(each.rule), each.subject), each)
            if known.status == "warn" and each.status == "fail":
                worst[finding_of(each.rule), each.subject] = each
        return worst

    def _show(self) -> None:
        self._metrics.show(
            {
                series: FAILS if each.status == "fail" else WARNS
                for series, each in self._worst().items()
            }
        )

    def _report(self, found: RuleVerdict) -> None:
        finding = finding_of(found.rule)
        level = logging.ERROR if found.status == "fail" else logging.WARNING
        self._throttled.log(
            level, found.rule.title, key=f"{finding} {found.subject} {found.status}",
            finding=finding, subject=found.subject, detail=found.figure, to_do=found.to_do,
        )  # fmt: skip

    def _look_for_misplaced(self, store: Store, reports: Sequence[StreamReport]) -> tuple[int, int]:
        """Count repo events among the newest entries of the live stream; only one worker does."""
        if self._role != "ingester" or not any(
            report.name == FIREHOSE_LIVE and report.length for report in reports
        ):
            return 0, 0
        entries = newest(store, FIREHOSE_LIVE, _PAGE_ENTRIES)
        return len(entries), sum(nature(entry.fields).kind == "repo" for entry in entries)


def watch(
    store: Store,
    metrics: StreamMetrics,
    streams: Sequence[str] = STREAMS,
    self_check: SelfCheck | None = None,
) -> list[StreamReport]:
    """Measure the streams once, set the gauges, and return the findings.

    Raises StoreUnavailableError and StoreRejectedError; the gauges then keep their values.
    """
    reports = collect(store, streams)
    letters = [store.call("XLEN", dead_letters(report.name)) for report in reports]
    for report, count in zip(reports, letters, strict=True):
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


def _kept_in(settings: Settings) -> Iterator[Rule]:
    """Yield the rules about disks that are that of data_dir: of embedded stores, and of the log."""
    if settings.data_dir is None:
        return
    kept = {REDIS_CANNOT_SAVE: unquote(settings.redis_url or ""), LOG: str(LogFile().path),
            DATABASE_DISK: unquote(settings.database_url or "")}  # fmt: skip
    yield from (rule for rule, place in kept.items() if f"{settings.data_dir}/" in place)


async def watch_stores(
    check: SelfCheck, context: WorkerContext, others: Callable[[], Sequence[RuleVerdict]] = tuple
) -> None:
    """Put all findings into the health document, with those of stores, until cancelled.

    Stores are judged by what links have met, so this also works while nothing answers. `others` are
    verdicts that the role finds by itself.
    """
    while True:
        troubles, log = store_troubles(), log_trouble()
        lost = [judged(LOG, "", 1, log)] if log else []
        check.look_at_stores(troubles, [*others(), *lost])
        stores = {trouble.error.finding for trouble in troubles}
        found = check.found
        context.health(
            {
                "stores": [
                    f"{each.rule.title}: {each.figure}"
                    for each in found
                    if each.status == "fail"
                    and (each.rule.name in stores or (each.rule is DATA_DISK and stores))
                ],
                "reports": written(found),
            }
        )
        await trio.sleep(_STORES_SECONDS)
