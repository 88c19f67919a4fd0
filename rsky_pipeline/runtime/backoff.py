"""Exponential back-off with full jitter.

Full jitter (a uniform draw from zero to the bound) best spreads clients that failed together.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass


def bound(attempt: int, base: float, cap: float) -> float:
    """Return the longest pause in seconds after `attempt` failures (1 for the first)."""
    if attempt < 1:
        return 0.0
    # 2 ** 60 s exceeds any cap; the limit keeps the float from overflowing.
    return float(min(cap, base * 2.0 ** min(attempt - 1, 60)))


@dataclass(frozen=True, slots=True)
class Backoff:
    """The back-off state of one activity. Immutable: every method returns a new state.

    `base` and `cap` are seconds. A failure more than `reset_after` seconds after the activity
    recovered counts as a first failure.
    """

    base: float = 1.0
    cap: float = 60.0
    reset_after: float = 60.0
    failures: int = 0
    working_since: float | None = None

    def worked(self, now: float) -> "Backoff":
        """Note that the activity works; the first call after a failure starts `reset_after`."""
        if self.working_since is not None:
            return self
        return Backoff(self.base, self.cap, self.reset_after, self.failures, now)

    def failed(
        self, now: float, draw: Callable[[], float] = random.random
    ) -> tuple["Backoff", float]:
        """Note a failure; returns the new state and the pause in seconds."""
        stable = self.working_since is not None and now - self.working_since >= self.reset_after
        failures = 1 if stable else self.failures + 1
        state = Backoff(self.base, self.cap, self.reset_after, failures)
        return state, bound(failures, self.base, self.cap) * draw()
