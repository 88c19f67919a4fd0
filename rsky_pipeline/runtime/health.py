"""The health of one worker: written by its event loop, read by the metrics thread."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from rsky_pipeline.health.rules import HEARTBEAT, PROGRESS
from rsky_pipeline.runtime.health_document import encoded

State = Literal["starting", "ready", "stopping"]


class Activity:
    """Work that has to go on while its `with` block lasts; where it stalls, the worker is ill.

    It can only be begun by a `with` statement, so that whatever ends the work (also an exception or
    a cancellation) ends what is expected of it.
    """

    def __init__(self, name: str, health: "Health") -> None:
        self.name = name
        self.last = 0.0  # when it last progressed, by the clock of `health`
        self._health = health

    def progress(self) -> None:
        """Note a unit of work, or that there was none to do."""
        self.last = self._health.now()

    def __enter__(self) -> Self:
        self.progress()
        self._health.activities = (*self._health.activities, self)
        return self

    def __exit__(self, *_: object) -> None:
        self._health.activities = tuple(
            each for each in self._health.activities if each is not self
        )


class Health:
    """The state of one worker: its phase, the age of its heartbeat, what its role reports.

    Only whole values are replaced, so the metrics thread may read at any time.
    """

    def __init__(
        self, role: str, instance: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._base = {"role": role, "instance": instance, "pid": os.getpid()}
        self.now = clock
        self._began = clock()
        self._beat = self._began
        self.activities: tuple[Activity, ...] = ()  # that are under way
        self._observed: Mapping[str, object] = {}
        self._details: Mapping[str, object] = {}
        self.state: State = "starting"

    def beat(self) -> None:
        """Note that the event loop runs."""
        self._beat = self.now()

    def activity(self, name: str) -> Activity:
        """Return work to do in a `with` block, with `progress` at least once a minute."""
        return Activity(name, self)

    def observe(self, **figures: object) -> None:
        """Note figures that hold unless the role reports better ones."""
        self._observed = figures

    def report(self, details: Mapping[str, object]) -> None:
        """Merge details of the role into the document."""
        self._details = {**self._details, **details}

    def trouble(self) -> str | None:
        """Return why the worker cannot be relied on now, or None."""
        now = self.now()
        if HEARTBEAT.verdict(now - self._beat) == "fail":
            return f"the event loop has been stuck for {now - self._beat:.0f} s"
        if self.state == "starting":
            return "starting"
        for name, age in self._progress_ages().items():
            if PROGRESS.verdict(age) == "fail":
                return f"no progress of {name} for {age:.0f} s"
        return None

    def document(self) -> dict[str, Any]:
        """Return the health document: the role's details, and on top of them what we know."""
        now = self.now()
        return {
            **self._observed,
            **encoded(self._details),
            **self._base,
            "state": self.state,
            "trouble": self.trouble(),
            "uptime_seconds": round(now - self._began, 1),
            "heartbeat_age_seconds": round(now - self._beat, 1),
            "progress_age_seconds": {
                name: round(age, 1) for name, age in self._progress_ages().items()
            },
        }

    def _progress_ages(self) -> dict[str, float]:
        """Return by name how long ago the activities under way progressed, the longest of each."""
        now = self.now()
        oldest: dict[str, float] = {}
        for activity in sorted(self.activities, key=lambda each: each.name):
            oldest[activity.name] = max(oldest.get(activity.name, 0.0), now - activity.last)
        return oldest

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Return the HTTP status and document of /healthz."""
        return (200 if self.trouble() is None else 503), self.document()
