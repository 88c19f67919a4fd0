"""Locks that the kernel releases when the holding processes end, and the pids of these.

A lock is an flock(2) on an open file. A child inherits the file, so the lock is held until the
child ends, even if the supervisor dies first.
"""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from rsky_pipeline.runtime.errors import PermissionDeniedError, UnavailableError, WorkerError

# What passes: bytes, inodes, quota, descriptors, memory, a disk that fails.
_NO_ROOM = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}
)


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

    Raises PermissionDeniedError if the file may not be created, and UnavailableError if there is no
    room for it.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise cannot_write(f"the lock file {path}", error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return Lock(path, descriptor)


def lacks_room(error: BaseException | None) -> bool:
    """Return whether an error passes when there is room again: then a start may be repeated."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def cannot_write(what: str, error: OSError) -> WorkerError:
    """Return the error for a file that cannot be made; only one of permissions is final."""
    text = f"cannot write {what}: {error.strerror}"
    if lacks_room(error):
        return UnavailableError(f"{text}; make room (`df`, `df -i`)")
    return PermissionDeniedError(
        f"{text}; choose another run_dir (or data_dir) that this account can write"
    )


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
    for file in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed since: a busy worker has files come and go
            if os.readlink(file) != wanted:
                continue
            if "FLOCK" in (process / "fdinfo" / file.name).read_text():
                return True
    return False


def _parent(process: Path) -> int:
    # The name in parentheses may hold spaces; the parent is the second field after it.
    return int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
