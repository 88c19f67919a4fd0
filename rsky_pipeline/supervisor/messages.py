"""What goes into the state machine of a child, and what comes out of it."""

import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: an exit code, or the signal that killed it."""

    code: int | None = None
    signal: int | None = None
    reason: str | None = None  # the child's own words, or why it could not be started

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
    """The operator wants the child to run."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The operator wants the child to end in order."""


@dataclass(frozen=True, slots=True)
class Restart:
    """The operator wants a fresh process."""


@dataclass(frozen=True, slots=True)
class Hurry:
    """The operator does not want to wait for a drain in progress."""


@dataclass(frozen=True, slots=True)
class Kill:
    """The operator wants it gone now."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """The process exists."""

    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The process could not be made; goes the same way as an exit."""

    reason: str
    draw: float = 0.5


@dataclass(frozen=True, slots=True)
class BecameReady:
    """The child said that it is ready."""


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
    | Hurry
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
class Report:
    """Tell people; `what` is a stable name."""

    what: str
    detail: str = ""


Effect = Spawn | Send | Report
