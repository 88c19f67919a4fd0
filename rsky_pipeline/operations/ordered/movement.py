"""The steps of an ordered stop or start, and the interface of process managers.

A `Manager` stops or starts one role (our supervisors, or systemd units). `flow` decides the order,
and records each `RoleMove` and its verification in Redis as `MovementStep`s of a `Movement`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from rsky_pipeline.runtime.health_document import CursorHealth

Tell = Callable[[str], None]
Result = Literal["pass", "note", "fail"]


@dataclass(frozen=True, slots=True)
class StepFinding:
    """One thing that was verified about a step; a note is no failure and worth knowing."""

    result: Result
    text: str


@dataclass(frozen=True, slots=True)
class MovementStep:
    """One role (or the supervisor itself) that was moved."""

    action: Literal["stop", "drain", "start", "restart"]
    role: str
    seconds: float
    lines: tuple[str, ...] = ()  # as whoever did it reported them
    findings: tuple[StepFinding, ...] = ()
    forced: bool = False  # a deadline passed, or something had to be killed
    ok: bool = True

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "action": self.action,
            "role": self.role,
            "seconds": round(self.seconds, 3),
            "ok": self.good,
            "forced": self.forced,
            "lines": list(self.lines),
            "findings": [{"result": one.result, "text": one.text} for one in self.findings],
        }

    @property
    def good(self) -> bool:
        """Whether the step succeeded and nothing that was verified failed."""
        return self.ok and all(finding.result != "fail" for finding in self.findings)


@dataclass(slots=True)
class Movement:
    """All steps of an ordered stop or start."""

    manager: str
    steps: list[MovementStep] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every step was good."""
        return all(step.good for step in self.steps)

    @property
    def forced(self) -> bool:
        """Whether any step was forced."""
        return any(step.forced for step in self.steps)

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "manager": self.manager,
            "ok": self.ok,
            "forced": self.forced,
            "steps": [step.document() for step in self.steps],
        }


@dataclass(frozen=True, slots=True)
class RoleMove:
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

    program: Path | None  # None when it is unknown; see `runtime.program.started_program`
    arguments: tuple[str, ...]
    roles: tuple[str, ...]
    directory: Path


class Manager(Protocol):
    """One way of running. Every method blocks; they raise WorkerError with one line."""

    name: str

    def running(self) -> tuple[str, ...]:
        """Return the roles of which a process may run, in start order."""
        ...

    def stop(self, role: str, deadline: float | None, tell: Tell) -> RoleMove:
        """Stop a role everywhere here; after `deadline` seconds it is forced."""
        ...

    def start(self, role: str, tell: Tell) -> RoleMove:
        """Start a role and wait until it is ready."""
        ...

    def reload(self, roles: Sequence[str], tell: Tell) -> None:
        """Have the next processes of roles started with the configuration as it is now."""
        ...

    def restart(self, role: str, tell: Tell) -> RoleMove:
        """Replace the processes of a role one at a time."""
        ...

    def crash_loops(self, roles: Sequence[str]) -> list[str]:
        """Return a line for each worker of roles that ends again and again since its start."""
        ...

    def close(self, tell: Tell, deadline: float | None = None) -> RoleMove:
        """End the supervisors and their embedded stores, once no role runs."""
        ...
