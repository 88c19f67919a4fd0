"""Workers without a supervisor, such as `rsky-indexer@2`: each notes itself in the run directory,
so that `status` and `verify` find it beside those that a supervisor lists.

A worker that is killed leaves its note, and is then named as one that does not answer. A file
beside the note asks it for another log level: it has no supervisor, and so no socket for commands.
"""

import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rsky_pipeline.configuration.settings import LOG_LEVELS

_log = logging.getLogger(__name__)
_FOLDER, _LEVEL = "workers", ".level"


@dataclass(frozen=True, slots=True)
class FurtherWorker:
    """A worker as it noted itself; `note` is the file."""

    role: str
    instance: int
    pid: int
    port: int
    note: Path

    @property
    def name(self) -> str:
        """Its name in `status` and `verify`."""
        return f"{self.role}-{self.instance}"


def note(run_dir: Path, role: str, instance: int, port: int) -> Path | None:
    """Note this process; returns the file, None if it cannot be written."""
    path = run_dir / _FOLDER / f"{role}-{instance}.json"
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.with_suffix(_LEVEL).unlink(missing_ok=True)  # for the worker before
        unfinished.write_text(json.dumps({"pid": os.getpid(), "port": port}))
        unfinished.replace(path)
    except OSError as error:
        _log.warning("status will not show this worker", extra={"file": path, "error": error})
        return None
    return path


def lock_of(run_dir: Path, role: str, instance: int) -> Path:
    """Return the lock of a running worker without a supervisor."""
    return run_dir / _FOLDER / f"{role}-{instance}.lock"


def forget(path: Path | None) -> None:
    """Remove the note of this process, unless another one of the same name has replaced it."""
    if path is not None and (found := _read(path)) is not None and found.pid == os.getpid():
        with suppress(OSError):
            path.unlink()


def further_workers(run_dir: Path) -> list[FurtherWorker]:
    """Return the workers that noted themselves, whether or not they still run."""
    found = (_read(path) for path in sorted((run_dir / _FOLDER).glob("*-*.json")))
    return [each for each in found if each is not None]


def ask_for_level(worker: FurtherWorker, level: str) -> None:
    """Ask a worker for another log level. Raises OSError."""
    file = worker.note.with_suffix(_LEVEL)
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(level)
    unfinished.chmod(0o644)  # root may ask, and the worker has an account of its own
    unfinished.replace(file)


def has_answered(worker: FurtherWorker) -> bool:
    """Return whether the last level that was asked for is taken up."""
    return not worker.note.with_suffix(_LEVEL).exists()


def take_back(worker: FurtherWorker) -> None:
    """Ask no longer: nobody answers, and the next worker of this name is not to be asked."""
    with suppress(OSError):
        worker.note.with_suffix(_LEVEL).unlink()


def level_asked_for(path: Path | None) -> str | None:
    """Return the log level that this process, which left the note, is asked for; once."""
    if path is None:
        return None
    file = path.with_suffix(_LEVEL)
    try:
        level = file.read_text()
        file.unlink()
    except (OSError, UnicodeDecodeError):
        return None
    return level if level in LOG_LEVELS else None


def _read(path: Path) -> FurtherWorker | None:
    role, _, number = path.stem.rpartition("-")
    try:
        note = json.loads(path.read_text())
        return FurtherWorker(role, int(number), int(note["pid"]), int(note["port"]), path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
