"""Ends what a test started in the background, also when the test itself is killed.

Commands such as `start` leave processes in sessions of their own. They are found by a variable that
they inherit, or by the scratch folder in their command line: embedded stores inherit nothing.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "RSKY_TEST_FOLDER"
PATIENCE_SECONDS = 20.0  # for guards of stores that see their supervisor gone
_GUARD = b"rsky_pipeline.embedded.guard"


@contextlib.contextmanager
def ended_with_us(folder: Path) -> Iterator[None]:
    """Have all processes that are started meanwhile, and the folder, gone at the end.

    A process of its own sees to it, so it holds for a test that runs into a time limit, too.
    """
    from tests.evidence import kept_if_failed  # the process below runs this file alone

    command = [sys.executable, "-P", __file__, str(folder)]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert watcher.stdin is not None
    os.environ[MARK] = str(folder)
    try:
        with kept_if_failed(folder):
            yield
    finally:
        del os.environ[MARK]
        watcher.stdin.close()
        watcher.wait()


def processes(folder: str) -> dict[int, bool]:
    """Return the ids of what belongs to a folder, and whether it is a store or the guard of one."""
    found = {}
    mark, within = f"{MARK}={folder}".encode(), f"{folder}/".encode()
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        if pid in (os.getpid(), os.getppid()):
            continue
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            command = (path / "cmdline").read_bytes()
            marked = mark in (path / "environ").read_bytes().split(b"\0")
            if command and (marked or within in command):
                found[pid] = _GUARD in command or not marked
    return found


def _end_all(folder: str) -> None:
    """End programs at once, then let the guards end the stores in order, then end what is left."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left := processes(folder):
        forced = time.monotonic() > deadline
        for pid, is_store in left.items():
            if forced or not is_store:
                _kill(pid, folder)
        time.sleep(0.1)


def _kill(pid: int, folder: str) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if pid in processes(folder):  # the id may be another's by now
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a stop of the test session is not meant for us
    sys.stdin.buffer.read()
    _end_all(sys.argv[1])
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    _main()
