"""Locks that the kernel releases when the holding process ends, and the pid of the holder.

A lock is an flock(2) on an open file. A child inherits the file, so the lock is held until the
child ends, even if the supervisor dies first. The pid in the file only serves messages and killing
a surviving child; ownership is decided by the lock.
"""

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

from rsky_pipeline.runtime.errors import PermissionDeniedError


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that a lock file names; `started` guards against a reused pid."""

    pid: int
    started: int  # clock ticks since boot, as in /proc/PID/stat

    def runs(self) -> bool:
        """Return whether exactly this process still exists."""
        return start_ticks(self.pid) == self.started


class Lock:
    """A lock held through an open file."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    def name_holder(self, pid: int) -> None:
        """Write the pid of the new holder to the file."""
        note = json.dumps({"pid": pid, "started": start_ticks(pid) or 0}).encode()
        os.pwrite(self.descriptor, note + b"\n", 0)
        os.ftruncate(self.descriptor, len(note) + 1)

    def name_us(self) -> None:
        """Write the pid of this process to the file."""
        self.name_holder(os.getpid())

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


def holder(path: Path) -> Holder | None:
    """Return the process named in the lock file, if any."""
    try:
        note = json.loads(path.read_bytes()[:200])
        return Holder(int(note["pid"]), int(note["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def start_ticks(pid: int) -> int | None:
    """Return the start time of a process in ticks since boot, or None if it does not exist."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The name in parentheses may hold spaces; the 22nd field is the 20th after it.
            return int(stat.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
