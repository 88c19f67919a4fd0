"""How long to wait before trying again: exponential, with full jitter.

Full jitter (a uniform draw from zero to the bound) spreads clients that failed together best.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass


def bound(attempt: int, base: float, cap: float) -> float:
    """Return the longest wait in seconds after the given number of failures (1 for the first)."""
    if attempt < 1:
        return 0.0
    # 2 ** 60 s is far above any cap; the limit keeps the float from overflowing.
    return float(min(cap, base * 2.0 ** min(attempt - 1, 60)))


@dataclass(frozen=True, slots=True)
class Backoff:
    """The waits of one retried activity. A value: every method returns a new one.

    `base` and `cap` are seconds. A failure that comes more than `reset_after` seconds after the
    activity began to work counts as the first one again.
    """

    base: float = 1.0
    cap: float = 60.0
    reset_after: float = 60.0
    failures: int = 0
    working_since: float | None = None

    def worked(self, now: float) -> "Backoff":
        """Note that the activity works; the first such time after a failure counts."""
        if self.working_since is not None:
            return self
        return Backoff(self.base, self.cap, self.reset_after, self.failures, now)

    def failed(
        self, now: float, draw: Callable[[], float] = random.random
    ) -> tuple["Backoff", float]:
        """Note a failure; return the new state and the seconds to wait."""
        stable = self.working_since is not None and now - self.working_since >= self.reset_after
        failures = 1 if stable else self.failures + 1
        state = Backoff(self.base, self.cap, self.reset_after, failures)
        return state, bound(failures, self.base, self.cap) * draw()
