"""The file that a process logs to: followed when it is rotated, and bounded where it is our own.

Whoever rotates a log renames it and sends SIGHUP to the supervisor. Its workers write to the file
that they inherited; each looks once a second if the name leads to another one. A terminal, a
pipe and the journal are no files: nothing is reopened there.
"""

import errno
import logging
import os
import stat
from pathlib import Path

MAX_BYTES = 50_000_000  # of our own log; one older file is kept
PRIVATE = 0o600
_NO_FILE = "It is a FIFO or a socket"
_STANDARD = (1, 2)  # descriptors of output and errors

log = logging.getLogger(__name__)


class LogFile:
    """The regular file behind standard error, by the name that it had when this was made."""

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._fails = False
        self.path = _name(descriptor)

    def reopen(self) -> bool:
        """Write to the file of this name from now on; return whether there is one.

        Raises OSError; then all stays as it was.
        """
        if self.path is None:
            return False
        old = os.fstat(self._descriptor)
        fresh = open_private(self.path)
        try:
            for each in {*_STANDARD, self._descriptor}:
                if os.path.samestat(os.fstat(each), old):
                    os.dup2(fresh, each)
        finally:
            os.close(fresh)
        return True

    def follow(self, own: Path | None = None, size: int = MAX_BYTES) -> None:
        """Reopen the file if it was renamed; rename it first if it is `own` and of this size.

        Never raises: a file that cannot be opened is logged once, and written to as before.
        """
        if self.path is None:
            return
        try:
            status = os.fstat(self._descriptor)
            if self._is_elsewhere(status):
                self.reopen()
            elif own is not None and status.st_size >= size and self.path == own.resolve():
                # Several supervisors may share it: the others see that it is elsewhere.
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
                self.reopen()
            self._fails = False
        except OSError as error:
            if not self._fails:
                self._fails = True
                log.error("log file not reopened", extra={"path": str(self.path), "error": error})

    def hang_up(self) -> bool:
        """React to SIGHUP; return whether the process has to stop, since its terminal is gone."""
        if self.path is None:
            return _has_terminal()
        try:
            self.reopen()
            log.info("log file reopened", extra={"path": str(self.path)})
        except OSError as error:
            log.error("log file not reopened", extra={"path": str(self.path), "error": error})
        return False

    def _is_elsewhere(self, status: os.stat_result) -> bool:
        assert self.path is not None
        try:
            return not os.path.samestat(self.path.stat(), status)
        except FileNotFoundError:
            return True


def open_private(path: Path) -> int:
    """Open a log to append to, for its owner alone; return the descriptor. Raises OSError.

    A FIFO is refused: opening it, and later each line, would wait for somebody who reads it.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, PRIVATE)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a FIFO that nobody reads, or a socket
            raise OSError(errno.EINVAL, _NO_FILE) from error
        raise
    status = os.fstat(descriptor)
    if stat.S_ISFIFO(status.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, _NO_FILE)
    if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) & 0o077:
        os.fchmod(descriptor, PRIVATE)
    return descriptor


def _has_terminal() -> bool:
    """Return whether a standard descriptor is, or was until it hung up, a terminal."""
    return any(_target(each).startswith(("/dev/pts/", "/dev/tty")) for each in (0, 1, 2))


def _name(descriptor: int) -> Path | None:
    """Return the name of the regular file behind a descriptor; None for a file without one."""
    try:
        status, path = os.fstat(descriptor), Path(_target(descriptor))
        named = stat.S_ISREG(status.st_mode) and os.path.samestat(path.stat(), status)
    except OSError:
        return None
    return path if named else None


def _target(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""
