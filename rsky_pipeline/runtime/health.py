"""The health of one worker: written by its event loop, read by the metrics thread."""

import os
import time
from collections.abc import Callable
from typing import Literal, Self

from rsky_pipeline.health.rules import HEARTBEAT, PROGRESS, STALL
from rsky_pipeline.runtime.health_document import HealthDocument, RoleHealth

State = Literal["starting", "ready", "stopping"]


class Activity:
    """Work that must progress during its `with` block; if it stalls, the worker is unhealthy.

    It starts only with a `with` statement, so that an exception or a cancellation, too, ends the
    obligation to progress.
    """

    def __init__(self, name: str, health: "Health") -> None:
        self.name = name
        self.last = 0.0  # time of the last progress, by the clock of `health`
        self._health = health

    def progress(self) -> None:
        """Note that a unit of work was done, or that none was due."""
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
    """The state of one worker: phase, age of the heartbeat, details reported by the role.

    Every update replaces a whole value, so the metrics thread may read without a lock.
    """

    def __init__(
        self, role: str, instance: int, clock: Callable[[], float] = time.monotonic,
        pipeline: str = "",
    ) -> None:  # fmt: skip
        self._base = HealthDocument(
            role=role, instance=instance, pid=os.getpid(), pipeline=pipeline
        )
        self.now = clock
        self._began = clock()
        self._beat = self._began
        self.activities: tuple[Activity, ...] = ()  # in progress
        self._observed = HealthDocument()
        self._reported = RoleHealth()
        self.state: State = "starting"

    def beat(self) -> None:
        """Note that the event loop runs."""
        self._beat = self.now()

    def activity(self, name: str) -> Activity:
        """Return a context manager for work that calls `progress` at least once a minute."""
        return Activity(name, self)

    def observe(self, figures: HealthDocument) -> None:
        """Set the figures of the harness; those that the role reports override them."""
        self._observed = figures

    def report(self, details: RoleHealth) -> None:
        """Merge details of the role into the document."""
        self._reported = {**self._reported, **details}

    def trouble(self) -> str | None:
        """Return the reason why the worker is unhealthy, or None."""
        now = self.now()
        if HEARTBEAT.verdict(now - self._beat) == "fail":
            return f"event loop stuck for {now - self._beat:.0f} s"
        if self.state == "starting":
            return "starting"
        for name, age in self._progress_ages().items():
            if PROGRESS.verdict(age) == "fail":
                return f"no progress of {name} for {age:.0f} s"
        return None

    def stalled(self) -> str | None:
        """Return why the worker should be started again, or None.

        Activities that wait for something with a name (a store that is away or full, a quiet relay)
        note progress meanwhile.
        """
        for name, age in self._progress_ages().items():
            if STALL.verdict(age) == "fail":
                return f"no progress of {name} for {age:.0f} s"
        return None

    def document(self) -> HealthDocument:
        """Return the health document."""
        now = self.now()
        return {
            **self._observed,
            **self._reported,
            **self._base,
            "state": self.state,
            "trouble": self.trouble(),
            "stalled": self.stalled(),
            "uptime_seconds": round(now - self._began, 1),
            "heartbeat_age_seconds": round(now - self._beat, 1),
            "progress_age_seconds": {
                name: round(age, 1) for name, age in self._progress_ages().items()
            },
        }

    def _progress_ages(self) -> dict[str, float]:
        """Return the seconds since the last progress, the maximum per activity name."""
        now = self.now()
        oldest: dict[str, float] = {}
        for activity in sorted(self.activities, key=lambda each: each.name):
            oldest[activity.name] = max(oldest.get(activity.name, 0.0), now - activity.last)
        return oldest

    def answer(self) -> tuple[int, HealthDocument]:
        """Return the HTTP status and document of /healthz.

        A worker with a finding that fails, for example a store that is away, is not to be started
        again (`trouble` is None), and does not do its work either.
        """
        document = self.document()
        fails = any(each["verdict"] == "fail" for each in document.get("reports", ()))
        return (503 if document["trouble"] or fails else 200), document
