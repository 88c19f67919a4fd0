"""What a test starts in the background ends with it, also when the test is killed."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import leftovers
from tests.stores import scratch_directory

LIMIT_SECONDS = 60.0
KILLED = """
import os, signal, subprocess, sys
from pathlib import Path
from tests import leftovers

with leftovers.ended_with_us(Path(sys.argv[1])):
    sleeper = subprocess.Popen(["sleep", "600"], start_new_session=True)
    print(sleeper.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def ends(pid: int) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(LIMIT_SECONDS * 1000))
    finally:
        os.close(descriptor)


def found_of(folder: Path, count: int) -> list[int]:
    """Return the processes of a folder when there are so many, or those found after the limit.

    `Popen` returns when the kernel has closed the pipe of the new program, which is before its
    command line and environment can be read from /proc.
    """
    deadline = time.monotonic() + LIMIT_SECONDS
    while len(found := list(leftovers.processes(str(folder)))) < count:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return found


def test_nothing_outlives_a_test_that_is_killed() -> None:
    with scratch_directory() as folder:
        result = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder)],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
            timeout=LIMIT_SECONDS,
        )  # fmt: skip
        assert result.returncode == -signal.SIGKILL, result.stderr
        assert ends(int(result.stdout))


def test_nothing_outlives_a_test_that_fails() -> None:
    started: list[subprocess.Popen[bytes]] = []

    def fail(folder: Path) -> None:
        with leftovers.ended_with_us(folder):
            command = ["sleep", "600"]
            started.append(subprocess.Popen(command, start_new_session=True))
            started.append(subprocess.Popen(command, env={}, start_new_session=True))
            assert found_of(folder, len(started) - 1) == [started[0].pid]
            raise ValueError("failed")

    with scratch_directory() as folder, pytest.raises(ValueError, match="failed"):
        fail(folder)
    sleeper, other = started
    try:
        assert sleeper.wait(LIMIT_SECONDS) == -signal.SIGKILL
        assert other.poll() is None
        assert not folder.exists()
    finally:
        other.kill()
        other.wait()
