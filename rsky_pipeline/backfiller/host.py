"""One host's limits and its state, by its own words and by how it behaves; no I/O.

A host is left alone while its rate limit says so, and parked after failures in a row: what is to be
fetched from it then waits elsewhere, so that it holds up nobody.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from rsky_pipeline.network.http import RateLimit
from rsky_pipeline.runtime.backoff import bound

PARK_AFTER = 3  # failures in a row
LONGEST_PARKING_SECONDS = 600.0
LIMITED_SECONDS = 10.0  # after a 429 that does not say how long; doubles
_LONGEST_LIMITED_SECONDS = 330.0


@dataclass(frozen=True, slots=True)
class HostRules:
    """What a host is asked for at most: downloads at once, requests a second, pauses (seconds)."""

    concurrency: int
    rate: float
    waiting: int = 4  # repos that wait for a turn in memory; the others wait in Redis
    patience: float = 5.0  # seconds that they wait
    pause_base: float = 5.0
    pause_cap: float = LONGEST_PARKING_SECONDS


class HostState:
    """The limits of one host as they are now. All times are of one clock, in seconds."""

    def __init__(self, rules: HostRules, now: float) -> None:
        self._rules = rules
        self._burst = min(float(rules.concurrency), max(1.0, rules.rate))
        self._tokens = self._burst
        self._refilled = now
        self._rate = rules.rate
        self._learned_until = 0.0
        self._limited = 0  # answers in a row that said so
        self._reserved = 0.0  # until when work that waits elsewhere has been spread
        self.failures = 0  # in a row
        self.problem = ""  # what the last of them said
        self.paused_until = 0.0

    @property
    def failing(self) -> bool:
        """Whether it failed so often that it is tried by one request at a time."""
        return self.failures >= PARK_AFTER

    def is_fresh(self, now: float) -> bool:
        """Whether nothing is known of it that would have to be remembered."""
        return not self.failures and not self._limited and now > max(
            self.paused_until, self._reserved, self._learned_until
        )  # fmt: skip

    def delay(self, now: float) -> float:
        """Return the seconds until it may be asked again, 0 for now."""
        if now < self.paused_until:
            return self.paused_until - now
        self._refill(now)
        return 0.0 if self._tokens >= 1.0 else (1.0 - self._tokens) / self._rate

    def ask(self, now: float) -> None:
        """Note that a request is sent."""
        self._refill(now)
        self._tokens -= 1.0

    def reserve(self, now: float, draw: Callable[[], float] = random.random) -> float:
        """Return the seconds after which work that has to wait elsewhere should come back.

        Every call is later than the one before by what a request takes at the host's rate.
        """
        first = max(now, self.paused_until)
        self._reserved = max(first + 1.0, self._reserved) + 1.0 / self._rate
        return self._reserved - now + draw()

    def succeeded(self, limit: RateLimit | None, now: float) -> None:
        """Note an answer, whatever it said of the repo."""
        self.failures = self._limited = 0
        self._learn(limit, now)

    def failed(self, problem: str, now: float, draw: Callable[[], float] = random.random) -> None:
        """Note that it could not be reached, broke off or had an error of its own."""
        self.failures += 1
        self.problem = problem
        if self.failing:
            attempt = self.failures - PARK_AFTER + 1
            pause = bound(attempt, self._rules.pause_base, self._rules.pause_cap)
            self.paused_until = max(self.paused_until, now + pause * (0.5 + draw() / 2))

    def limited(self, retry_after: float | None, limit: RateLimit | None, now: float) -> float:
        """Note that it asked for a pause; return how long that is."""
        self.failures = 0
        self._limited += 1
        if retry_after is None and limit is not None and limit.remaining == 0:
            retry_after = limit.reset_seconds
        if retry_after is None:
            retry_after = bound(self._limited, LIMITED_SECONDS, _LONGEST_LIMITED_SECONDS)
        self._learn(limit, now)
        self.paused_until = max(self.paused_until, now + retry_after)
        return retry_after

    def _learn(self, limit: RateLimit | None, now: float) -> None:
        if limit is None:
            return
        if limit.remaining <= 0:
            self.paused_until = max(self.paused_until, now + limit.reset_seconds)
        elif limit.reset_seconds > 0:
            # What is left has to last until the limit is reset.
            self._rate = min(self._rules.rate, limit.remaining / limit.reset_seconds)
            self._learned_until = now + limit.reset_seconds
            self._tokens = min(self._tokens, float(limit.remaining))

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._refilled) * self._rate)
        self._refilled = now
        if now >= self._learned_until:
            self._rate = self._rules.rate
