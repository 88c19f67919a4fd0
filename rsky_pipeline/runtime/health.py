"""What a worker knows about its own health; read by the metrics thread, written by the loop."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from rsky_pipeline.runtime.health_document import encoded

State = Literal["starting", "ready", "stopping"]
HEARTBEAT_STALE_SECONDS = 15.0
PROGRESS_STALE_SECONDS = 120.0


class Health:
    """The state of one worker: its phase, the age of its heartbeat, what its role reports.

    Only whole values are replaced, so the metrics thread may read at any time.
    """

    def __init__(
        self, role: str, instance: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._base = {"role": role, "instance": instance, "pid": os.getpid()}
        self._clock = clock
        self._began = clock()
        self._beat = self._began
        self._progress: dict[str, float] = {}
        self._observed: Mapping[str, object] = {}
        self._details: Mapping[str, object] = {}
        self.state: State = "starting"

    def beat(self) -> None:
        """Note that the event loop runs."""
        self._beat = self._clock()

    def progress(self, activity: str) -> None:
        """Note that an activity did a unit of work, or had none to do."""
        self._progress = {**self._progress, activity: self._clock()}

    def observe(self, **figures: object) -> None:
        """Note figures that hold unless the role reports better ones."""
        self._observed = figures

    def report(self, details: Mapping[str, object]) -> None:
        """Merge details of the role into the document."""
        self._details = {**self._details, **details}

    def trouble(self) -> str | None:
        """Return why the worker cannot be relied on now, or None."""
        now = self._clock()
        if now - self._beat > HEARTBEAT_STALE_SECONDS:
            return f"the event loop has been stuck for {now - self._beat:.0f} s"
        if self.state == "starting":
            return "starting"
        for activity, last in sorted(self._progress.items()):
            if now - last > PROGRESS_STALE_SECONDS:
                return f"no progress of {activity} for {now - last:.0f} s"
        return None

    def document(self) -> dict[str, Any]:
        """Return the health document: the role's details, and on top of them what we know."""
        now = self._clock()
        return {
            **self._observed,
            **encoded(self._details),
            **self._base,
            "state": self.state,
            "trouble": self.trouble(),
            "uptime_seconds": round(now - self._began, 1),
            "heartbeat_age_seconds": round(now - self._beat, 1),
            "progress_age_seconds": {
                activity: round(now - last, 1) for activity, last in self._progress.items()
            },
        }

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Return the HTTP status and document of /healthz."""
        return (200 if self.trouble() is None else 503), self.document()
