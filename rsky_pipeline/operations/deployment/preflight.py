"""Checks before anything is touched. Every check is made, so that all problems are seen."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rsky_pipeline.operations.deployment.program import DeploymentTarget, Program, describe, digest
from rsky_pipeline.operations.deployment.unpacked import UNPACKED
from rsky_pipeline.operations.ordered.supervised import Supervised
from rsky_pipeline.runtime.errors import WorkerError
from rsky_pipeline.supervisor import client

RESERVE_BYTES = 50_000_000


@dataclass(frozen=True, slots=True)
class PreflightCheck:
    """One thing that was looked at before a deployment."""

    name: str
    result: Literal["pass", "warn", "fail"]
    text: str


@dataclass(frozen=True, slots=True)
class Preflight:
    """All checks, and the builds of both files."""

    checks: tuple[PreflightCheck, ...]
    old_build: dict[str, Any] | None
    new_build: dict[str, Any] | None

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(check.result != "fail" for check in self.checks)


def preflight(
    target: DeploymentTarget, new: Program, data_dir: Path, roots: Sequence[Path]
) -> Preflight:
    """Look at everything; changes nothing. `roots` are where the new file will unpack."""
    checks = list(_files(target, new.path))
    old_build = _build(Program(target.program), "current file", checks, "warn")
    new_build = None
    if new.path.is_file():
        new_build = _build(new, "new file", checks, "fail")
    if new_build is not None:
        checks.append(_configuration(new))
        checks.append(_schema(new))
    checks += _space(target.program, new.path, data_dir, roots)
    checks += _running(target)
    return Preflight(tuple(checks), old_build, new_build)


def _files(target: DeploymentTarget, new: Path) -> Iterator[PreflightCheck]:
    if not new.is_file():
        yield PreflightCheck("file", "fail", f"{new} is not a file")
        return
    if not os.access(new, os.X_OK):
        yield PreflightCheck("file", "fail", f"{new} is not executable: chmod +x {new}")
    if not target.program.is_file():
        yield PreflightCheck("program", "fail", f"{target.program} is not a file: set binary_path")
        return
    if digest(new) == digest(target.program):
        yield PreflightCheck("file", "warn", f"{new} is the same file that is installed")
    folder = target.program.parent
    if os.access(folder, os.W_OK):
        yield PreflightCheck("permission", "pass", f"{folder} can be written")
    else:
        yield PreflightCheck("permission", "fail", f"{folder} cannot be written: run this as root")


def _build(
    program: Program, name: str, checks: list[PreflightCheck], otherwise: Literal["warn", "fail"]
) -> dict[str, Any] | None:
    try:
        build = program.build()
    except WorkerError as error:
        checks.append(PreflightCheck(name, otherwise, str(error)))
        return None
    checks.append(PreflightCheck(name, "pass", f"{program.path}: {describe(build)}"))
    return build


def _configuration(new: Program) -> PreflightCheck:
    try:
        answer = new.ask("config", "check", "--json")
    except WorkerError as error:
        return PreflightCheck("configuration", "fail", str(error))
    if answer.ok:
        return PreflightCheck("configuration", "pass", "valid under the new file")
    problems = answer.document.get("problems") if isinstance(answer.document, dict) else None
    text = "; ".join(map(str, problems)) if problems else answer.complaint()
    return PreflightCheck("configuration", "fail", text)


def _schema(new: Program) -> PreflightCheck:
    try:
        answer = new.ask("db", "init", "--dry-run", "--json")
    except WorkerError as error:
        return PreflightCheck("schema", "fail", str(error))
    if not answer.ok or not isinstance(answer.document, dict):
        return PreflightCheck(
            "schema", "fail", f"the new file refuses the database: {answer.complaint()}"
        )
    pending = answer.document.get("pending", [])
    if not pending:
        return PreflightCheck("schema", "pass", "the database is as the new file needs it")
    return PreflightCheck("schema", "pass", f"to be done: {', '.join(pending)}")


def _space(
    program: Path, new: Path, data_dir: Path, roots: Sequence[Path]
) -> Iterator[PreflightCheck]:
    """Check each file system for everything that will be written to it."""
    if not new.is_file():
        return
    size = new.stat().st_size
    wanted = [(program.parent, size), (data_dir, 0), *((root, UNPACKED * size) for root in roots)]
    systems: dict[int, list[tuple[Path, int]]] = {}
    for folder, needed in wanted:
        systems.setdefault(_existing(folder).stat().st_dev, []).append((folder, needed))
    for parts in systems.values():
        needed = sum(each for _, each in parts) + RESERVE_BYTES
        free = shutil.disk_usage(_existing(parts[0][0])).free
        folders = ", ".join(dict.fromkeys(str(folder) for folder, _ in parts))
        text = f"{folders}: {free / 1e6:,.0f} MB free, {needed / 1e6:,.0f} MB needed"
        if free < needed:
            text += "; to do: `rsky-pipeline cleanup`"
        yield PreflightCheck("space", "pass" if free >= needed else "fail", text)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _running(target: DeploymentTarget) -> Iterator[PreflightCheck]:
    if not target.roles:
        text = "nothing is running: install the file by hand, then `rsky-pipeline start`"
        yield PreflightCheck("running", "fail", text)
        return
    text = f"{', '.join(target.roles)} under {target.manager.name}"
    yield PreflightCheck("running", "pass", text)
    for launch in target.launches:
        if launch.program is None or Path(os.path.realpath(launch.program)) != target.program:
            roles = ", ".join(launch.roles)
            text = f"the supervisor of {roles} was started from {launch.program}, not from there"
            yield PreflightCheck("running", "fail", f"{text}: start it from {target.program} first")
    if isinstance(target.manager, Supervised):
        yield from _environment(target.manager.supervisors())


def _environment(supervisors: list[client.Supervisor]) -> Iterator[PreflightCheck]:
    """The new supervisor gets our environment; names are printed, values may be secret."""
    for each in supervisors:
        theirs = supervisor_environment(each)
        if not theirs:
            yield PreflightCheck("environment", "warn", "of the supervisor: cannot be read")
            continue
        names = {name for name in {*theirs, *os.environ} if name.startswith("RSKY_PIPELINE_")}
        different = sorted(name for name in names if theirs.get(name) != os.environ.get(name))
        if different:
            text = f"{', '.join(different)} differ from the running supervisor's: set them alike"
            yield PreflightCheck("environment", "fail", text)
        else:
            yield PreflightCheck("environment", "pass", "as that of the running supervisor")


def supervisor_environment(supervisor: client.Supervisor) -> dict[str, str]:
    """Return the variables of a supervisor; none where they cannot be read."""
    try:
        raw = Path(f"/proc/{supervisor.status['pid']}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (pair.partition(b"=")[::2] for pair in raw.split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(value) for name, value in pairs}
