"""What the ingester tells about itself: gauges of each host, health, the state of the streams."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import orjson
import trio

from rsky_pipeline.ingester.batch import Batch
from rsky_pipeline.ingester.enumeration import Enumerator
from rsky_pipeline.ingester.live import Follower
from rsky_pipeline.ingester.quarantine import Quarantine
from rsky_pipeline.ingester.readiness import degradation
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.runtime.context import Detail, WorkerContext
from rsky_pipeline.runtime.threads import StoreThread
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.names import FIREHOSE_LIVE, LABEL_LIVE

_log = logging.getLogger(__name__)
_HEALTH_SECONDS = 1.0
_WATCH_SECONDS = 5.0


class FeedReport:
    """The figures of one host, updated with every batch that the store has."""

    def __init__(
        self, stream: str, host: str, metrics: IngesterMetrics, quarantine: Quarantine
    ) -> None:
        self.stream = stream
        self.host = host
        self.written = 0  # events and labels
        self.lag_seconds: float | None = None
        self._metrics = metrics
        self._quarantine = quarantine
        self.batches = 0

    def note(self, batch: Batch, lengths: Mapping[str, int]) -> None:
        """Take note of a batch and the lengths of its streams."""
        streams = [entry.stream for entry in batch.entries]
        events = streams.count(FIREHOSE_LIVE)
        labels = sum(_labels(e.payload) for e in batch.entries if e.stream == LABEL_LIVE)
        self.batches += 1
        self.written += events + labels
        self._metrics.labels_written.inc(labels)
        self._metrics.stream_events.inc(events)
        if batch.seq is not None:
            self._metrics.cursor.labels(self.stream, self.host).set(batch.seq)
        if self._quarantine.stream in lengths:
            self._quarantine.observe_length(lengths[self._quarantine.stream])
        moment = None if batch.time is None else _timestamp(batch.time)
        if moment is not None:
            self.lag_seconds = max(0.0, time.time() - moment)
            self._metrics.lag.labels(self.host).set(self.lag_seconds)
            self._metrics.event_time.labels(self.host).set(moment)


class Reporter:
    """Reports health every second and looks at the streams every few."""

    def __init__(
        self,
        context: WorkerContext,
        relays: Sequence[tuple[Follower, FeedReport]],
        labelers: Sequence[tuple[Follower, FeedReport]],
        enumerators: Sequence[Enumerator],
        metrics: IngesterMetrics,
    ) -> None:
        self._context = context
        self._relays = relays
        self._feeds = [*relays, *labelers]
        self._enumerators = enumerators
        self._metrics = metrics
        metrics.events_in_memory.set_function(lambda: self._held()[0])
        metrics.bytes_in_memory.set_function(lambda: self._held()[1])

    async def report_health(self) -> None:
        """Report until cancelled."""
        before, then = self._written(), trio.current_time()
        batches = [0] * len(self._feeds)
        while True:
            for follower, _ in self._feeds:
                follower.report_counts()
            batches = self._note_progress(batches)
            written, now = self._written(), trio.current_time()
            rate = (written - before) / (now - then) if now > then else 0.0
            before, then = written, now
            self._metrics.complete.set(bool(self._enumerators) and self._all_listed())
            self._context.health(self._details(rate))
            await trio.sleep(_HEALTH_SECONDS)

    async def watch_streams(
        self,
        look: Callable[[], object],
        store: Store,
        metrics: StreamMetrics,
        quarantines: Sequence[Quarantine],
    ) -> None:
        """Keep the stream gauges true until cancelled, whether traffic flows or not."""
        thread = StoreThread()
        while True:
            try:
                await thread.call(look)
                for quarantine in quarantines:
                    kept = await thread.call(inspect, store, quarantine.stream)
                    quarantine.observe_length(kept.length)
            except (StoreUnavailable, StoreRejected) as error:
                metrics.errors.inc()
                _log.warning("cannot look at the streams", extra={"error": str(error)})
            await trio.sleep(_WATCH_SECONDS)

    def _note_progress(self, batches: list[int]) -> list[int]:
        """Report progress where every writer wrote, had nothing to write, or found no room."""
        counts = [report.batches for _, report in self._feeds]
        stuck = [
            follower
            for (follower, _), before, after in zip(self._feeds, batches, counts, strict=True)
            if before == after and not follower.writer.idle and not follower.writer.is_full
        ]
        if not stuck:
            self._context.progress("writing")
        return counts

    def _details(self, rate: float) -> Mapping[str, Detail]:
        lags = [report.lag_seconds for _, report in self._relays if report.lag_seconds is not None]
        details: dict[str, Detail] = {
            "rate": round(rate, 1),
            "lag_seconds": round(max(lags), 3) if lags else None,
            "degraded": degradation([follower for follower, _ in self._relays]),
            "relays": len(self._relays),
            "connected_relays": sum(follower.connected for follower, _ in self._relays),
            "connected_sockets": sum(follower.connected for follower, _ in self._feeds),
            "events_in_memory": self._held()[0],
            "held_up": any(follower.writer.is_full for follower, _ in self._feeds),
            "repos_listed": sum(enumerator.state.repos for enumerator in self._enumerators),
            "listing_done": self._all_listed(),
            "listing_holes": sum(enumerator.state.holes for enumerator in self._enumerators),
        }
        for follower, report in self._feeds:
            details[f"cursor[{report.stream}:{report.host}]"] = follower.writer.stored
        for enumerator in self._enumerators:
            details |= enumerator.details()
        return details

    def _all_listed(self) -> bool:
        """Tell whether every listing that is read now is at its end."""
        return all(each.state.done for each in self._enumerators if each.active)

    def _written(self) -> int:
        return sum(report.written for _, report in self._feeds)

    def _held(self) -> tuple[int, int]:
        writers = [follower.writer for follower, _ in self._feeds]
        return sum(writer.events for writer in writers), sum(writer.bytes for writer in writers)


def _labels(payload: bytes) -> int:
    """Return how many labels an entry holds; labelers are too slow for this to cost anything."""
    return len(orjson.loads(payload)["labels"])


def _timestamp(text: str) -> float | None:
    """Return an event's time in seconds since 1970; it is as free as any text of a host."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
