"""What has to happen whether traffic flows or not: stream gauges, trimming, keeping hold of work.

Entries that wait here for long, because the database is away, would be taken over by other
workers, and in the end be suspected of crashing them.
"""

import logging
from collections.abc import Callable, Mapping

import trio

from rsky_pipeline.health.self_check import SelfCheck, watch
from rsky_pipeline.indexer.stream_reader import StreamReader
from rsky_pipeline.observability.indexer import IndexerMetrics
from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.runtime.threads import StoreThread
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.consumer import GroupReader, trim
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable

_log = logging.getLogger(__name__)
WATCH_SECONDS = 5.0
TRIM_EVERY = 6  # looks
FORGOTTEN_CONSUMER_MS = 24 * 3600 * 1000


class Maintenance:
    """Looks after the consumed streams on a connection of its own."""

    def __init__(
        self,
        open_store: Callable[[], Store],
        intakes: Mapping[str, StreamReader],
        gauges: StreamMetrics,
        metrics: IndexerMetrics,
        self_check: SelfCheck,
    ) -> None:
        self._open_store = open_store
        self._intakes = intakes
        self.waiting = set[str]()  # what waits for a store: entries are not to blame for the time
        self._gauges = gauges
        self._metrics = metrics
        self._self_check = self_check
        self._store: Store | None = None
        self._thread = StoreThread()

    async def run(self) -> None:
        """Look and trim until cancelled."""
        looks = 0
        while True:
            try:
                await self._thread.call(self._look, looks % TRIM_EVERY == 0)
            except (StoreUnavailable, StoreRejected) as error:
                self._gauges.errors.inc()
                _log.warning("cannot look at the streams", extra={"error": str(error)})
            looks += 1
            await trio.sleep(WATCH_SECONDS)

    def close(self) -> None:
        """Close the connection."""
        if self._store is not None:
            self._store.close()

    def _look(self, trimming: bool) -> None:
        if self._store is None:
            self._store = self._open_store()
        watch(self._store, self._gauges, tuple(self._intakes), self._self_check)
        for stream, intake in self._intakes.items():
            rule = intake.rule
            reader = GroupReader(self._store, stream, rule.group, rule.consumer)
            if held := intake.held:
                reader.hold(held, forgive=bool(self.waiting))
            if trimming:
                self._metrics.trimmed.inc(trim(self._store, stream))
                reader.remove_idle_consumers(FORGOTTEN_CONSUMER_MS)
