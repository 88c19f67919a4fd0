"""The program file and its backups: `rsky-pipeline.backup.YYYYmmdd_HHMMSS` beside it."""

import hashlib
import os
import re
import shutil
from datetime import datetime
from pathlib import Path

from rsky_pipeline.operations.deployment.journal import sync_directory

_STAMP = re.compile(r"\d{8}_\d{6}")


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


def prune(program: Path, kept: int) -> list[Path]:
    """Remove all but the newest backups; return what was removed. Raises OSError."""
    removed = list(backups(program).values())[kept:]
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
