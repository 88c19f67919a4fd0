"""How patient the supervisor is with a child: numbers only, all in seconds."""

import signal
from dataclasses import dataclass

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime.errors import FINAL_CODES, UNAVAILABLE

HURRY_SECONDS = 5.0
STACKS_SECONDS = 2.0
KILL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Rung:
    """A step of forcing a child to end: the signal, and how long it gets to act on it."""

    signal: signal.Signals
    wait: float


@dataclass(frozen=True, slots=True)
class Policy:
    """Start, restart and stop rules of a kind of child."""

    ladder: tuple[Rung, ...]  # from the friendliest to SIGKILL
    ready_timeout: float
    base: float = 1.0
    cap: float = 60.0
    stable_after: float = 60.0  # ready for this long: earlier failures are forgotten
    crash_budget: int = 5  # this many unplanned exits within `crash_window` are a crash loop
    crash_window: float = 300.0
    final_codes: frozenset[int] = FINAL_CODES
    dependency_codes: frozenset[int] = frozenset({UNAVAILABLE})  # no fault of the child itself


def worker_policy(settings: Settings) -> Policy:
    """Return the rules for role workers: drain, hurry, print the stacks, kill."""
    return Policy(
        ladder=(
            Rung(signal.SIGTERM, settings.stop_timeout_seconds),
            Rung(signal.SIGINT, HURRY_SECONDS),  # a second TERM at once would merge with the first
            Rung(signal.SIGQUIT, STACKS_SECONDS),
            Rung(signal.SIGKILL, KILL_SECONDS),
        ),
        ready_timeout=settings.ready_timeout_seconds,
    )


def store_policy(stop_signal: int, settings: Settings) -> Policy:
    """Return the rules for an embedded store: everything waits for it, so it is restarted sooner,
    and what it holds on disk is worth a longer stop."""
    gentle = Rung(signal.Signals(stop_signal), 60.0)
    immediate = Rung(
        signal.SIGQUIT, 10.0
    )  # PostgreSQL: without a checkpoint, recovers from its log
    postgres = stop_signal == signal.SIGINT
    return Policy(
        ladder=(
            gentle,
            *((immediate,) if postgres else ()),
            Rung(signal.SIGKILL, KILL_SECONDS),
        ),
        ready_timeout=max(300, settings.ready_timeout_seconds),  # replays its log after a crash
        base=0.2,
        cap=10.0,
        crash_budget=10,
        final_codes=frozenset(),
        dependency_codes=frozenset(),
    )
