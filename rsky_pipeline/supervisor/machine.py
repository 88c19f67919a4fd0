"""The life of one child as a pure function: `step(child, input, now, policy)`.

Nothing here reads a clock, draws a random number or touches a process; a driver (`child.py`) feeds
inputs, performs the effects in order, and sends `Timer` once `child.timer` has passed. Times are
seconds of a monotonic clock.

A stop escalates: each `StopStep` of the policy is a signal and the time until the next one, up to
SIGKILL. The operator can skip ahead (`Escalate`, `Kill`); nothing goes back.
"""

import math
import signal
from dataclasses import dataclass, replace
from enum import StrEnum

from rsky_pipeline.runtime.backoff import bound
from rsky_pipeline.runtime.errors import FINAL_CODES, UNAVAILABLE

# Signals that people and service managers send. A process that crashes gets others.
_OUTSIDE = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM})


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: an exit code, or the signal that killed it."""

    code: int | None = None
    signal: int | None = None
    reason: str | None = None  # reported by the child, or the error of starting it
    oom: bool = False  # the kernel killed a process for want of memory meanwhile
    asked: bool = False  # an operator or a stop of the supervisor wanted it to end
    given_up: bool = False  # the supervisor ended it, since it did not work any more

    @property
    def blameless(self) -> bool:
        """Whether it did not end because of its work: it was stopped, or killed from outside."""
        killed = self.signal in _OUTSIDE and not self.oom and not self.given_up
        return self.asked or self.code == 0 or killed

    def describe(self) -> str:
        """Return one line for people."""
        if self.signal is not None:
            how = f"killed by {signal.Signals(self.signal).name}"
        elif self.code is not None:
            how = f"exit code {self.code}"
        else:
            how = "could not be started"
        return f"{how}: {self.reason}" if self.reason else how


# --- inputs ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Request: run the child."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Request: stop the child, beginning with the gentlest signal."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Request: replace the process by a new one."""


@dataclass(frozen=True, slots=True)
class Escalate:
    """Request: skip the rest of a drain in progress."""


@dataclass(frozen=True, slots=True)
class Kill:
    """Request: kill the process now."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """The process exists."""

    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The process could not be created; handled like an exit."""

    reason: str
    draw: float = 0.5


@dataclass(frozen=True, slots=True)
class BecameReady:
    """The child reported readiness."""


@dataclass(frozen=True, slots=True)
class Unresponsive:
    """The child's loop has not reported for too long."""

    reason: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended. `draw` in [0, 1) is the jitter of the wait that may follow."""

    exit: Exit
    draw: float = 0.5


@dataclass(frozen=True, slots=True)
class Timer:
    """`child.timer` has passed."""


Input = (
    Start
    | Stop
    | Restart
    | Escalate
    | Kill
    | Spawned
    | SpawnFailed
    | BecameReady
    | Unresponsive
    | Exited
    | Timer
)


# --- effects --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    """Make a process; answer with `Spawned` or `SpawnFailed`."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a signal to the process; SIGKILL goes to its whole group."""

    number: int


@dataclass(frozen=True, slots=True)
class Announce:
    """Log a change of state; `what` is its stable name."""

    what: str
    detail: str = ""


Effect = Spawn | Send | Announce


# --- the rules ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StopStep:
    """A step of stopping a child: the signal, and the seconds until the next step."""

    signal: signal.Signals
    wait: float


@dataclass(frozen=True, slots=True)
class Policy:
    """Start, restart and stop rules of a kind of child; all times are seconds."""

    escalation: tuple[StopStep, ...]  # from the gentlest signal to SIGKILL
    ready_timeout: float
    base: float = 1.0
    cap: float = 60.0
    give_up_wait: float = math.inf  # the most seconds for a step where it does not work any more
    stable_after: float = 60.0  # ready for this long: earlier failures are forgotten
    crash_budget: int = 5  # this many unplanned exits within `crash_window` are a crash loop
    crash_window: float = 300.0
    final_codes: frozenset[int] = FINAL_CODES
    dependency_codes: frozenset[int] = frozenset({UNAVAILABLE})  # not the child's fault


class Phase(StrEnum):
    """The state of a child; `status` shows these words."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    BACKOFF = "backoff"  # waits before the next start
    CRASHLOOP = "crashloop"  # waits too, after too many recent failures
    FAILED = "failed"  # final: only an operator starts it again


WAITING = frozenset({Phase.BACKOFF, Phase.CRASHLOOP})
HOPELESS = frozenset({Phase.CRASHLOOP, Phase.FAILED})  # waiting for readiness is of no use
AT_REST = frozenset({Phase.STOPPED, Phase.FAILED})
ALIVE = frozenset({Phase.STARTING, Phase.READY, Phase.STOPPING})  # there is a process


@dataclass(frozen=True, slots=True)
class Child:
    """The supervisor's state of a child."""

    phase: Phase = Phase.STOPPED
    since: float = 0.0
    wanted: bool = False  # requested to run; a child stopped on request is never restarted
    pid: int | None = None
    timer: float | None = None
    stop_step: int = 0  # how far a stop has escalated
    again: bool = False  # start at once when the stop in progress is done
    gave_up: bool = False  # the stop in progress is of a child that did not work any more
    failures: int = 0  # in a row, without a stable run between
    failed_at: tuple[float, ...] = ()
    starts: int = 0
    restarts: int = 0
    kills: int = 0
    last_exit: Exit | None = None

    def crash_looping(self, policy: Policy) -> bool:
        """Return whether it has failed too often recently."""
        return len(self.failed_at) >= policy.crash_budget


Result = tuple[Child, tuple[Effect, ...]]


def step(child: Child, event: Input, now: float, policy: Policy) -> Result:
    """Return the child after an input, and the effects to perform."""
    match event:
        case Start():
            return _start(child, now, policy)
        case Stop():
            return _stop(replace(child, wanted=False, again=False), now, policy)
        case Restart():
            return _restart(child, now, policy)
        case Escalate():
            return _escalate(child, now, policy, 1)
        case Kill():
            return _escalate(child, now, policy, len(policy.escalation) - 1)
        case Spawned(pid):
            return _spawned(replace(child, pid=pid), policy)
        case SpawnFailed(reason, draw):
            return _exited(child, Exit(reason=reason), draw, now, policy)
        case BecameReady():
            return _ready(child, now, policy)
        case Unresponsive(reason):
            return _give_up_on(child, "unresponsive", reason, now, policy)
        case Exited(how, draw):
            return _exited(child, how, draw, now, policy)
        case Timer():
            return _timer(child, now, policy)


def _start(child: Child, now: float, policy: Policy) -> Result:
    child = replace(child, wanted=True)
    if child.phase is Phase.STOPPING:
        return replace(child, again=True), ()
    if child.phase in AT_REST or child.phase in WAITING:
        return _spawn(replace(child, failures=0, failed_at=()), now, policy)
    return child, ()


def _restart(child: Child, now: float, policy: Policy) -> Result:
    if child.phase in (Phase.STARTING, Phase.READY):
        return _stop(replace(child, wanted=True, again=True), now, policy)
    return _start(child, now, policy)


def _spawn(child: Child, now: float, policy: Policy) -> Result:
    deadline = now + policy.ready_timeout
    child = replace(child, phase=Phase.STARTING, since=now, pid=None, timer=deadline)
    child = replace(child, stop_step=0, again=False, gave_up=False, starts=child.starts + 1)
    return child, (Spawn(),)


def _spawned(child: Child, policy: Policy) -> Result:
    if child.phase is Phase.STOPPING:  # stopped before its process existed: signal it now
        return child, (Send(policy.escalation[child.stop_step].signal),)
    return child, ()


def _ready(child: Child, now: float, policy: Policy) -> Result:
    if child.phase is not Phase.STARTING:
        return child, ()
    ready = replace(child, phase=Phase.READY, since=now, timer=now + policy.stable_after)
    return ready, (Announce("ready"),)


def _stop(child: Child, now: float, policy: Policy) -> Result:
    if child.phase in (Phase.STARTING, Phase.READY):
        first = policy.escalation[0]
        deadline = now + _wait_after(first, child, policy)
        child = replace(child, phase=Phase.STOPPING, since=now, stop_step=0, timer=deadline)
        return child, _signals(child, first.signal)
    if child.phase is Phase.STOPPING:
        return child, ()
    if child.phase in WAITING or child.phase is Phase.FAILED:
        return replace(child, phase=Phase.STOPPED, since=now, timer=None), ()
    return child, ()


def _give_up_on(child: Child, what: str, reason: str, now: float, policy: Policy) -> Result:
    """Stop a child that should run; its exit then counts as a failure."""
    if child.phase not in (Phase.STARTING, Phase.READY):
        return child, ()
    child, effects = _stop(replace(child, gave_up=True), now, policy)
    return child, (Announce(what, reason), *effects)


def _escalate(child: Child, now: float, policy: Policy, least: int) -> Result:
    """Take a stop in progress to the step `least`, unless it is there or further already."""
    number = min(least, len(policy.escalation) - 1)
    if child.phase is not Phase.STOPPING or child.stop_step >= number:
        return child, ()
    return _take_stop_step(child, number, now, policy)


def _take_stop_step(child: Child, number: int, now: float, policy: Policy) -> Result:
    taken = policy.escalation[number]
    final = number == len(policy.escalation) - 1
    kills = child.kills + (1 if final and child.stop_step != number else 0)
    timer = now + _wait_after(taken, child, policy)
    child = replace(child, stop_step=number, timer=timer, kills=kills)
    return child, (Announce("forcing", taken.signal.name), *_signals(child, taken.signal))


def _wait_after(step: StopStep, child: Child, policy: Policy) -> float:
    return min(step.wait, policy.give_up_wait) if child.gave_up else step.wait


def _timer(child: Child, now: float, policy: Policy) -> Result:
    match child.phase:
        case Phase.STARTING:
            limit = f"not ready after {policy.ready_timeout:.0f} s"
            return _give_up_on(child, "not_ready", limit, now, policy)
        case Phase.READY:
            return replace(child, failures=0, failed_at=(), timer=None), ()
        case Phase.STOPPING:
            following = min(child.stop_step + 1, len(policy.escalation) - 1)
            return _take_stop_step(child, following, now, policy)
        case Phase.BACKOFF | Phase.CRASHLOOP:
            return _spawn(replace(child, restarts=child.restarts + 1), now, policy)
        case _:
            return replace(child, timer=None), ()


def _exited(child: Child, how: Exit, draw: float, now: float, policy: Policy) -> Result:
    if child.phase not in ALIVE:
        return child, ()
    asked = child.phase is Phase.STOPPING and not child.gave_up
    how = replace(how, asked=asked, given_up=child.gave_up)
    child = replace(child, pid=None, timer=None, since=now, last_exit=how)
    if not child.wanted:
        return replace(child, phase=Phase.STOPPED), (Announce("stopped"),)
    if child.again:
        return _spawn(replace(child, restarts=child.restarts + 1), now, policy)
    if how.code in policy.final_codes:
        return replace(child, phase=Phase.FAILED), (Announce("failed", how.describe()),)
    return _wait(child, how, draw, now, policy)


def _wait(child: Child, how: Exit, draw: float, now: float, policy: Policy) -> Result:
    """Decide how long to wait after an unplanned exit."""
    failures = child.failures + 1
    recent = tuple(at for at in child.failed_at if now - at < policy.crash_window)
    if how.code not in policy.dependency_codes:
        recent = (*recent, now)[-policy.crash_budget :]
    looping = len(recent) >= policy.crash_budget
    # A crash loop goes on at the cap, jittered a little so that workers do not come back in step.
    delay = (
        policy.cap * (0.5 + draw / 2)
        if looping
        else draw * bound(failures, policy.base, policy.cap)
    )
    child = replace(
        child,
        phase=Phase.CRASHLOOP if looping else Phase.BACKOFF,
        failures=failures,
        failed_at=recent,
        timer=now + delay,
    )
    what = "crashloop" if looping else "backoff"
    return child, (Announce(what, f"{how.describe()}; next start in {delay:.1f} s"),)


def _signals(child: Child, number: int) -> tuple[Effect, ...]:
    return (Send(number),) if child.pid is not None else ()
