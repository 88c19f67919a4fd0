"""What an ordered stop or start did, step by step. Pure."""

from dataclasses import dataclass, field
from typing import Any, Literal

Result = Literal["pass", "note", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was verified about a step; a note is no failure and worth knowing."""

    result: Result
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """One role (or the supervisor itself) that was moved."""

    action: Literal["stop", "drain", "start", "restart"]
    role: str
    seconds: float
    lines: tuple[str, ...] = ()  # in the words of who did it
    findings: tuple[Finding, ...] = ()
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
        """Whether the step did what it should and nothing that was verified failed."""
        return self.ok and all(finding.result != "fail" for finding in self.findings)


@dataclass(slots=True)
class Movement:
    """All steps of an ordered stop or start."""

    manager: str
    steps: list[Step] = field(default_factory=list)

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
