"""Workers without a supervisor, such as `rsky-indexer@2`: each notes itself in the run directory,
so that `status` and `verify` find it beside those that a supervisor lists.

A worker that is killed leaves its note, and is then named as one that does not answer.
"""

import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)
_FOLDER = "workers"


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
        unfinished.write_text(json.dumps({"pid": os.getpid(), "port": port}))
        unfinished.replace(path)
    except OSError as error:
        _log.warning("status will not show this worker", extra={"file": path, "error": error})
        return None
    return path


def forget(path: Path | None) -> None:
    """Remove the note of this process, unless another one of the same name has replaced it."""
    if path is not None and (found := _read(path)) is not None and found.pid == os.getpid():
        with suppress(OSError):
            path.unlink()


def further_workers(run_dir: Path) -> list[FurtherWorker]:
    """Return the workers that noted themselves, whether or not they still run."""
    found = (_read(path) for path in sorted((run_dir / _FOLDER).glob("*-*.json")))
    return [each for each in found if each is not None]


def _read(path: Path) -> FurtherWorker | None:
    role, _, number = path.stem.rpartition("-")
    try:
        note = json.loads(path.read_text())
        return FurtherWorker(role, int(number), int(note["pid"]), int(note["port"]), path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
