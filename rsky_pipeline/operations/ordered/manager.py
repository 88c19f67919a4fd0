"""The two ways of running: who is asked to stop and start a role, and how it answers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rsky_pipeline.runtime.health_document import CursorHealth

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Moved:
    """How stopping or starting a role went; `cursors` are those that its workers last reported."""

    lines: tuple[str, ...] = ()
    forced: bool = False
    ok: bool = True
    cursors: tuple[CursorHealth, ...] = ()


@dataclass(frozen=True, slots=True)
class Launch:
    """How a supervisor was started, so that it can be started again.

    `arguments` follow the program; they may hold passwords, so they are for private files only.
    """

    program: Path | None  # None when it was not started from a program file
    arguments: tuple[str, ...]
    roles: tuple[str, ...]
    directory: Path


class Manager(Protocol):
    """One way of running. Every method blocks; they raise WorkerError with one line."""

    name: str

    def running(self) -> tuple[str, ...]:
        """Return the roles of which a process may run, in start order."""
        ...

    def stop(self, role: str, deadline: float | None, tell: Tell) -> Moved:
        """Stop a role everywhere here; after `deadline` seconds it is forced."""
        ...

    def start(self, role: str, tell: Tell) -> Moved:
        """Start a role and wait until it is ready."""
        ...

    def restart(self, role: str, tell: Tell) -> Moved:
        """Replace the processes of a role one at a time."""
        ...

    def close(self, tell: Tell) -> Moved:
        """End what is left when no role runs: supervisors and their embedded stores."""
        ...
