"""The journal of deployments, written before each step, so that a crash can be undone.

It is a file and not a table: the database may be away, may be broken by a migration, or may live
in the very pipeline that is stopped. Each line is one JSON object and is on the disk (fsync) before
the step that it announces begins. The file is private: how supervisors were started may hold
passwords. A last line that a crash cut short is ignored.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsky_pipeline.runtime.errors import WorkerError
from rsky_pipeline.runtime.lock import is_held

FILE = "deployments.jsonl"
OUTCOMES = ("deployed", "rolled back", "refused", "failed")


@dataclass(slots=True)
class JournalEntry:
    """One deployment as the journal has it; `outcome` is None while it is not finished."""

    id: str
    plan: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    outcome: str | None = None
    reason: str = ""
    began: float = 0.0
    ended: float | None = None

    def reached(self, step: str) -> bool:
        """Return whether a step was begun."""
        return any(one["step"] == step for one in self.steps)

    def finished(self, step: str) -> bool:
        """Return whether a step was finished well."""
        return any(one["step"] == step and one["state"] == "done" for one in self.steps)

    def describe(self) -> str:
        """Say that it was interrupted, where, and what to do."""
        step = self.steps[-1]["step"] if self.steps else "checks"
        return (
            f"the {self.plan['kind']} {self.id} was interrupted in its step {step}: "
            "`rsky-pipeline deploy --resume` finishes it, `rsky-pipeline rollback` undoes it"
        )

    def document(self) -> dict[str, Any]:
        """Return the public part: without the command lines of supervisors."""
        plan = {name: value for name, value in self.plan.items() if name != "launches"}
        return {
            "id": self.id, "outcome": self.outcome or "unfinished", "reason": self.reason,
            "began": self.began, "ended": self.ended, **plan, "steps": self.steps,
        }  # fmt: skip


def lock_path(data_dir: Path) -> Path:
    """Return the lock of whoever deploys in a data directory."""
    return data_dir / "locks" / "deployment.lock"


def interrupted(data_dir: Path) -> JournalEntry | None:
    """Return a deployment that ended in its middle; None while it is at work, or for strangers."""
    try:
        entry = Journal(data_dir).unfinished()
        return None if entry is None or is_held(lock_path(data_dir)) else entry
    except (OSError, WorkerError):
        return None


class Journal:
    """The journal of one data directory. Raises OSError when it cannot be written."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / FILE

    def begin(self, id: str, plan: Mapping[str, Any]) -> None:
        """Open an entry."""
        self._write({"id": id, "event": "begin", "plan": dict(plan)})

    def step(
        self, id: str, step: str, state: str, details: Mapping[str, Any] | None = None
    ) -> None:
        """Write that a step begins, is done or failed."""
        self._write(
            {"id": id, "event": "step", "step": step, "state": state, "details": details or {}}
        )

    def end(self, id: str, outcome: str, reason: str = "") -> None:
        """Close an entry."""
        self._write({"id": id, "event": "end", "outcome": outcome, "reason": reason})

    def entries(self) -> list[JournalEntry]:
        """Return every deployment, oldest first."""
        found: dict[str, JournalEntry] = {}
        for record in self._records():
            entry = found.get(record["id"])
            if record["event"] == "begin":
                found[record["id"]] = JournalEntry(
                    record["id"], record["plan"], began=record["time"]
                )
            elif entry is None:
                continue
            elif record["event"] == "step":
                entry.steps.append(
                    {name: record[name] for name in ("step", "state", "time", "details")}
                )
            else:
                entry.outcome, entry.reason = record["outcome"], record["reason"]
                entry.ended = record["time"]
        return list(found.values())

    def unfinished(self) -> JournalEntry | None:
        """Return the deployment that was interrupted, if there is one."""
        return next((one for one in reversed(self.entries()) if one.outcome is None), None)

    def _records(self) -> list[dict[str, Any]]:
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            return []
        records = []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # cut short by a crash: its step had not begun
            if isinstance(record, dict) and "id" in record:
                records.append(record)
        return records

    def _write(self, record: dict[str, Any]) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_new = not self.path.exists()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        try:
            line = json.dumps({**record, "time": round(time.time(), 3)}, default=str).encode()
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # a crash cut the last one short
            os.write(descriptor, line + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            sync_directory(self.path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames in a directory survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
