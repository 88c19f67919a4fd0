"""The life of one child as a pure function: `step(child, input, now, policy)`.

Nothing here reads a clock, draws a random number or touches a process; a driver feeds inputs,
performs the effects in order, and sends `Timer` once `child.timer` has passed. Times are seconds of
a monotonic clock.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from rsky_pipeline.runtime.backoff import bound
from rsky_pipeline.supervisor import messages as m
from rsky_pipeline.supervisor.messages import Effect, Exit, Input, Report, Send, Spawn
from rsky_pipeline.supervisor.policy import Policy


class Phase(StrEnum):
    """Where a child is in its life. `status` shows these words."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    BACKOFF = "backoff"  # waits before the next start
    CRASHLOOP = "crashloop"  # waits too, having failed too often of late
    FAILED = "failed"  # final: only an operator starts it again


WAITING = frozenset({Phase.BACKOFF, Phase.CRASHLOOP})
AT_REST = frozenset({Phase.STOPPED, Phase.FAILED})
ALIVE = frozenset({Phase.STARTING, Phase.READY, Phase.STOPPING})  # there is a process


@dataclass(frozen=True, slots=True)
class Child:
    """Everything the supervisor remembers of a child."""

    phase: Phase = Phase.STOPPED
    since: float = 0.0
    wanted: bool = False  # the operator's will; a child stopped on purpose is never restarted
    pid: int | None = None
    timer: float | None = None
    rung: int = 0  # how far up the ladder a stop is
    again: bool = False  # start at once when the stop in progress is done
    failures: int = 0  # in a row, without a stable run between
    failed_at: tuple[float, ...] = ()
    starts: int = 0
    restarts: int = 0
    kills: int = 0
    last_exit: Exit | None = None

    def crash_looping(self, policy: Policy) -> bool:
        """Tell whether it failed too often of late."""
        return len(self.failed_at) >= policy.crash_budget


Result = tuple[Child, tuple[Effect, ...]]


def step(child: Child, event: Input, now: float, policy: Policy) -> Result:
    """Return the child after an input, and what is to be done about it."""
    match event:
        case m.Start():
            return _start(child, now, policy)
        case m.Stop():
            return _stop(replace(child, wanted=False, again=False), now, policy)
        case m.Restart():
            return _restart(child, now, policy)
        case m.Hurry():
            return _climb(child, now, policy, 1)
        case m.Kill():
            return _climb(child, now, policy, len(policy.ladder) - 1)
        case m.Spawned(pid):
            return _spawned(replace(child, pid=pid), policy)
        case m.SpawnFailed(reason, draw):
            return _exited(child, Exit(reason=reason), draw, now, policy)
        case m.BecameReady():
            return _ready(child, now, policy)
        case m.Unresponsive(reason):
            return _give_up_on(child, "unresponsive", reason, now, policy)
        case m.Exited(how, draw):
            return _exited(child, how, draw, now, policy)
        case m.Timer():
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
    return replace(child, rung=0, again=False, starts=child.starts + 1), (Spawn(),)


def _spawned(child: Child, policy: Policy) -> Result:
    if child.phase is Phase.STOPPING:  # told to stop before there was a process to tell it
        return child, (Send(policy.ladder[child.rung].signal),)
    return child, ()


def _ready(child: Child, now: float, policy: Policy) -> Result:
    if child.phase is not Phase.STARTING:
        return child, ()
    ready = replace(child, phase=Phase.READY, since=now, timer=now + policy.stable_after)
    return ready, (Report("ready"),)


def _stop(child: Child, now: float, policy: Policy) -> Result:
    if child.phase in (Phase.STARTING, Phase.READY):
        rung = policy.ladder[0]
        child = replace(child, phase=Phase.STOPPING, since=now, rung=0, timer=now + rung.wait)
        return child, _signals(child, rung.signal)
    if child.phase is Phase.STOPPING:
        return child, ()
    if child.phase in WAITING or child.phase is Phase.FAILED:
        return replace(child, phase=Phase.STOPPED, since=now, timer=None), ()
    return child, ()


def _give_up_on(child: Child, what: str, reason: str, now: float, policy: Policy) -> Result:
    """Stop a child that should run; its exit then counts as a failure."""
    if child.phase not in (Phase.STARTING, Phase.READY):
        return child, ()
    child, effects = _stop(child, now, policy)
    return child, (Report(what, reason), *effects)


def _climb(child: Child, now: float, policy: Policy, lowest: int) -> Result:
    """Take a stop in progress to the rung `lowest`, unless it is there or further already."""
    number = min(lowest, len(policy.ladder) - 1)
    if child.phase is not Phase.STOPPING or child.rung >= number:
        return child, ()
    return _take_rung(child, number, now, policy)


def _take_rung(child: Child, number: int, now: float, policy: Policy) -> Result:
    rung = policy.ladder[number]
    final = number == len(policy.ladder) - 1
    kills = child.kills + (1 if final and child.rung != number else 0)
    child = replace(child, rung=number, timer=now + rung.wait, kills=kills)
    return child, (Report("forcing", rung.signal.name), *_signals(child, rung.signal))


def _timer(child: Child, now: float, policy: Policy) -> Result:
    match child.phase:
        case Phase.STARTING:
            limit = f"not ready after {policy.ready_timeout:.0f} s"
            return _give_up_on(child, "not_ready", limit, now, policy)
        case Phase.READY:
            return replace(child, failures=0, failed_at=(), timer=None), ()
        case Phase.STOPPING:
            return _take_rung(child, min(child.rung + 1, len(policy.ladder) - 1), now, policy)
        case Phase.BACKOFF | Phase.CRASHLOOP:
            return _spawn(replace(child, restarts=child.restarts + 1), now, policy)
        case _:
            return replace(child, timer=None), ()


def _exited(child: Child, how: Exit, draw: float, now: float, policy: Policy) -> Result:
    if child.phase not in ALIVE:
        return child, ()
    child = replace(child, pid=None, timer=None, since=now, last_exit=how)
    if not child.wanted:
        return replace(child, phase=Phase.STOPPED), (Report("stopped"),)
    if child.again:
        return _spawn(replace(child, restarts=child.restarts + 1), now, policy)
    if how.code in policy.final_codes:
        return replace(child, phase=Phase.FAILED), (Report("failed", how.describe()),)
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
    return child, (Report(what, f"{how.describe()}; next start in {delay:.1f} s"),)


def _signals(child: Child, number: int) -> tuple[Effect, ...]:
    return (Send(number),) if child.pid is not None else ()
