"""The supervisor's metrics port. The loop leaves a document; the metrics thread only reads it."""

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.observability.supervisor import ChildSample, SupervisorCollector
from rsky_pipeline.runtime.health import HEARTBEAT_STALE_SECONDS
from rsky_pipeline.runtime.metrics_port import SUPERVISOR, open_metrics_server


class Exporter:
    """Serves the status document as metrics and health."""

    def __init__(self, settings: Settings, document: Callable[[], dict[str, Any]]) -> None:
        self._make = document
        self._document: dict[str, Any] = {"processes": [], "healthy": False}
        self.refresh()
        registry = CollectorRegistry()
        registry.register(SupervisorCollector(self._samples))
        self._server = open_metrics_server(settings, SUPERVISOR, 1, registry, self._health)
        self.port = self._server.port

    def __enter__(self) -> "Exporter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()

    def refresh(self) -> None:
        """Take a new document; called by the loop."""
        self._document = self._make()
        self._refreshed = time.monotonic()

    def _health(self) -> tuple[int, dict[str, Any]]:
        document = self._document
        stale = time.monotonic() - self._refreshed > HEARTBEAT_STALE_SECONDS
        return (200 if document["healthy"] and not stale else 503), document

    def _samples(self) -> Iterator[ChildSample]:
        for child in self._document["processes"]:
            yield ChildSample(
                name=child["name"],
                role=child["role"],
                state=child["state"],
                restarts=child["restarts"],
                kills=child["kills"],
                crash_looping=child["crash_looping"],
                rss_bytes=child["rss_bytes"],
            )
