"""Locks that the kernel releases when the holding processes end, and the pids of these.

A lock is an flock(2) on an open file. A child inherits the file, so the lock is held until the
child ends, even if the supervisor dies first.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from rsky_pipeline.runtime.errors import PermissionDeniedError


class Lock:
    """A lock held through an open file."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    def let_go(self) -> None:
        """Close our copy; the lock is free when every process that inherited it has ended."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def acquire(path: Path) -> Lock | None:
    """Take the lock without waiting; returns None if another process holds it.

    Raises PermissionDeniedError if the file cannot be created.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise PermissionDeniedError(
            f"cannot write the lock file {path}: {error.strerror}; choose another run_dir "
            "(or data_dir) that this account can write"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return Lock(path, descriptor)


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock; False if the file does not exist."""
    if not path.exists():
        return False
    lock = acquire(path)
    if lock is not None:
        lock.let_go()
    return lock is None


def holders(path: Path) -> list[int]:
    """Return the pids of the processes that hold the lock, each process before its children.

    The kernel is asked rather than a note in the file: a supervisor may be killed before it has
    written one, and children of a store hold the lock for as long as they outlive it. Processes of
    other accounts are seen by root alone.
    """
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another account
            if _holds(process, path):
                parents[int(process.name)] = _parent(process)
    return sorted(parents, key=lambda pid: (parents[pid] in parents, pid))


def _holds(process: Path, path: Path) -> bool:
    """Return whether one of its open files has the lock; who only looks at it has none."""
    wanted = str(path.resolve())
    return any(
        os.readlink(file) == wanted and "FLOCK" in (process / "fdinfo" / file.name).read_text()
        for file in (process / "fd").iterdir()
    )


def _parent(process: Path) -> int:
    # The name in parentheses may hold spaces; the parent is the second field after it.
    return int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
