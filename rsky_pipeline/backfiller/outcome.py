"""How an attempt at a repo can end, and what follows from it; no I/O."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime.backoff import bound
from rsky_pipeline.streams.repo_job import RepoJob

Kind = Literal["permanent", "transient", "rate_limited", "invalid"]
KINDS: tuple[Kind, ...] = ("permanent", "transient", "rate_limited", "invalid")
INVALID_ATTEMPTS = 3  # a host that serves a broken repo thrice means it


class RepoFailed(Exception):
    """An attempt failed.

    `permanent` ends the matter until the account changes. `invalid` and `transient` are tried
    again, then become dead letters. `rate_limited` is tried again without counting. `host` is the
    PDS, where it was known.
    """

    def __init__(
        self, kind: Kind, reason: str, message: str, retry_after: float | None = None,
        host: str = "",
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.retry_after = retry_after
        self.host = host


@dataclass(frozen=True, slots=True)
class Done:
    """A repo is queued as a whole; `unchanged` if what is stored was new enough already.

    `settles`: older states of its records may still be on their way, so that it must be looked at
    again once this is stored.
    """

    rev: str
    host: str = ""
    records: int = 0
    deletes: int = 0
    bytes: int = 0
    unchanged: bool = False
    settles: bool = False


class NotStored(Exception):
    """What was queued of a repo is not stored yet; come back after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not stored yet, looked at again after {seconds:.0f} s")
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a job whose attempt failed.

    `attempts` have failed now; `seconds` is the pause before the next one of a job that waits.
    """

    action: Literal["wait", "unavailable", "bury"]
    attempts: int
    seconds: float = 0.0


def judge(
    job: RepoJob, failure: RepoFailed, settings: Settings,
    draw: Callable[[], float] = random.random,
) -> Verdict:  # fmt: skip
    """Decide what follows a failure."""
    attempts = job.attempts + (failure.kind != "rate_limited")
    if failure.kind == "permanent":
        # Deletions that nothing else knows of must not go with a repo that cannot be fetched.
        return Verdict("bury" if job.deleted else "unavailable", attempts)
    most = settings.backfiller_max_attempts
    if failure.kind == "invalid":
        most = min(most, INVALID_ATTEMPTS)
    if attempts >= most:
        return Verdict("bury", attempts)
    base, cap = settings.backfiller_retry_initial_ms, settings.backfiller_retry_max_ms
    pause = bound(max(attempts, 1), base / 1000, cap / 1000) * (0.5 + draw() / 2)
    return Verdict("wait", attempts, max(pause, failure.retry_after or 0.0))
