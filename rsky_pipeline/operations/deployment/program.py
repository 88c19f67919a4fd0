"""Program files: the one that is installed and runs, the build of a file, backups and the swap.

A program file may be of any version; it is asked by its own commands. Backups stand beside the
program as `rsky-pipeline.backup.YYYYmmdd_HHMMSS`.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.operations.deployment.journal import sync_directory
from rsky_pipeline.operations.ordered.movement import Launch, Manager
from rsky_pipeline.operations.ordered.supervised import Supervised
from rsky_pipeline.operations.ordered.units import Units
from rsky_pipeline.runtime.errors import WorkerError
from rsky_pipeline.runtime.program import clean_environment, program_file
from rsky_pipeline.systemd.files import STANDARD_PROGRAM

VERSION_SECONDS = 120.0  # the first start unpacks
COMMAND_SECONDS = 300.0
LOOK_SECONDS = 1.0
_STAMP = re.compile(r"\d{8}_\d{6}")


@dataclass(frozen=True, slots=True)
class DeploymentTarget:
    """The installed program and its running roles."""

    program: Path
    manager: Manager
    roles: tuple[str, ...]
    launches: tuple[Launch, ...]  # of our own supervisors; none with systemd


def find_target(settings: Settings, manager: Manager) -> DeploymentTarget:
    """Find the program file that runs. Raises WorkerError when it is unclear which one that is."""
    roles = manager.running()
    launches = tuple(manager.launches()) if isinstance(manager, Supervised) else ()
    program = settings.binary_path or _running_program(manager, roles, launches) or program_file()
    if program is None:
        raise WorkerError(
            "it is unclear which file to replace: set binary_path to the installed program"
        )
    return DeploymentTarget(Path(os.path.realpath(program)), manager, roles, launches)


def _running_program(
    manager: Manager, roles: tuple[str, ...], launches: tuple[Launch, ...]
) -> Path | None:
    found = {launch.program for launch in launches if launch.program is not None}
    if isinstance(manager, Units):
        found = {unit.program for role in roles for unit in manager.units(role) if unit.program}
        found = found or {STANDARD_PROGRAM}
    if len(found) > 1:
        names = ", ".join(sorted(map(str, found)))
        raise WorkerError(f"several programs run ({names}): set binary_path to the one to replace")
    return next(iter(found), None)


def launches_from(document: list[dict[str, Any]]) -> tuple[Launch, ...]:
    """Return launches from the journal."""
    return tuple(
        Launch(
            Path(each["program"]) if each["program"] else None,
            tuple(each["arguments"]),
            tuple(each["roles"]),
            Path(each["directory"]),
        )
        for each in document
    )


@dataclass(frozen=True, slots=True)
class ProgramAnswer:
    """How a command ended; `document` is the JSON that it printed, None if it printed none."""

    code: int
    document: Any
    talk: str  # the last lines of its standard error

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.code == 0

    def complaint(self) -> str:
        """Return why it failed, in its own words."""
        words = self.talk or (json.dumps(self.document)[:300] if self.document else "")
        return f"exit code {self.code}" + (f": {words}" if words else "")


@dataclass(frozen=True, slots=True)
class Program:
    """A program file and the arguments that name the configuration.

    `environment` are variables beside those of this process.
    """

    path: Path
    configuration: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def build(self) -> dict[str, Any]:
        """Return its version, commit and build time. Raises WorkerError when it does not run."""
        answer = self.ask("version", "--json", configured=False, seconds=VERSION_SECONDS)
        document = answer.document
        if not answer.ok or not isinstance(document, dict) or "version" not in document:
            why = answer.complaint()
            if self._is_cut():
                why = "it is incomplete (its archive has no end): copy it again"
            raise WorkerError(f"{self.path} does not print its version: {why}")
        return document

    def _is_cut(self) -> bool:
        """Return whether this is the beginning of a program file: Python reads it as a script."""
        with self.path.open("rb") as file:
            begins = b"PK\x03\x04" in file.read(4096)
        return begins and not zipfile.is_zipfile(self.path)

    def ask(
        self,
        *arguments: str,
        configured: bool = True,
        seconds: float = COMMAND_SECONDS,
        futile: Callable[[], str] = lambda: "",
    ) -> ProgramAnswer:
        """Run a command. Raises WorkerError when it cannot be run or does not end.

        `futile` is asked now and then, and returns why the answer is not worth waiting for: the
        command is ended then, and that raised.
        """
        command = [str(self.path), *arguments, *(self.configuration if configured else ())]
        deadline = time.monotonic() + seconds
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=clean_environment({**os.environ, **self.environment}),
            )
        except OSError as error:
            raise WorkerError(f"{self.path} cannot be run: {error.strerror}") from error
        with process:
            try:
                while True:
                    try:
                        output, talk = process.communicate(timeout=LOOK_SECONDS)
                        break
                    except subprocess.TimeoutExpired:
                        if why := futile():
                            raise WorkerError(why) from None
                        if time.monotonic() > deadline:
                            words = " ".join(arguments)
                            text = f"{self.path} {words} did not end in {seconds:.0f} s"
                            raise WorkerError(text) from None
            except BaseException:
                process.kill()
                raise
        talk = " | ".join(talk.strip().splitlines()[-3:])
        return ProgramAnswer(process.returncode, _json(output), talk)


def describe(build: dict[str, Any] | None) -> str:
    """Return a build in a few words."""
    if build is None:
        return "unknown"
    return f"{build.get('version')} (commit {build.get('commit')}, built {build.get('built_at')})"


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def new_stamp(program: Path) -> str:
    """Return the local time as backups are named by it, one that no backup has yet."""
    moment = datetime.now().astimezone()
    while True:
        stamp = moment.strftime("%Y%m%d_%H%M%S")
        if not backup_path(program, stamp).exists():
            return stamp
        moment = moment.replace(microsecond=0) + (moment.resolution * 1_000_000)


def backup_path(program: Path, stamp: str) -> Path:
    """Return where the backup of a time is."""
    return program.with_name(f"{program.name}.backup.{stamp}")


def backups(program: Path) -> dict[str, Path]:
    """Return the backups by their time, newest first."""
    start = f"{program.name}.backup."
    found = {
        path.name.removeprefix(start): path
        for path in program.parent.glob(f"{start}*")
        if _STAMP.fullmatch(path.name.removeprefix(start)) and path.is_file()
    }
    return dict(sorted(found.items(), reverse=True))


def latest_other(program: Path) -> str | None:
    """Return the time of the newest backup that is not the file as it is; None if there is none.

    Raises OSError.
    """
    known = backups(program)
    if not known:
        return None
    current = digest(program) if program.is_file() else ""
    return next((stamp for stamp, path in known.items() if digest(path) != current), None)


def surplus(program: Path, kept: int) -> list[Path]:
    """Return all but the newest backups, and copies that a kill left unfinished. Raises OSError."""
    start = f".{program.name}."
    unfinished = [
        path for path in program.parent.glob(f"{start}*new")
        if path.name == f"{start}new" or path.name.startswith(f"{start}backup.")
    ]  # fmt: skip
    return [*list(backups(program).values())[kept:], *unfinished]


def prune(program: Path, kept: int) -> list[Path]:
    """Remove all but the newest backups; return the removed ones. Raises OSError."""
    removed = surplus(program, kept)
    for path in removed:
        path.unlink()
    return removed


def back_up(program: Path, stamp: str) -> Path:
    """Keep the current file under its backup name, durably. Raises OSError."""
    place = backup_path(program, stamp)
    try:
        os.link(program, place)
    except OSError:  # a file system without hard links
        _copy(program, place, program)
    sync_directory(program.parent)
    return place


def swap(source: Path, program: Path) -> None:
    """Put a copy of `source` in place of the program, durably and at once. Raises OSError.

    Whoever starts the program at any moment finds the old or the new file, complete.
    """
    _copy(source, program, program)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()


def _copy(source: Path, place: Path, like: Path) -> None:
    """Copy by way of a temporary file, with the owner and mode of `like`."""
    unfinished = place.with_name(f".{place.name}.new")
    status = like.stat()
    with source.open("rb") as original, unfinished.open("wb") as copy:
        shutil.copyfileobj(original, copy, 1 << 20)
        os.fchmod(copy.fileno(), status.st_mode & 0o7777)
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(copy.fileno(), status.st_uid, status.st_gid)
        copy.flush()
        os.fsync(copy.fileno())
    unfinished.replace(place)
    sync_directory(place.parent)
