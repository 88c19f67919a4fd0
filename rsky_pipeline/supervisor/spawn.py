"""Making a child: always a fresh interpreter or server by exec, from the main thread.

The kernel ties some things to the creating *thread*; trio's worker threads come and go, the main
thread stays. The process id is held by a pidfd, so that no signal can reach a successor of it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import trio

from rsky_pipeline.configuration import advice
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.embedded import guard
from rsky_pipeline.embedded.program import StoreProgram
from rsky_pipeline.runtime import notify
from rsky_pipeline.runtime.channel import BLAMELESS, encode_settings
from rsky_pipeline.runtime.lock import Lock
from rsky_pipeline.supervisor.machine import Exit

# -P: the directory that we were started in must not hide the packages that belong to this program.
WORKER_PROGRAM = (sys.executable, "-P", "-m", "rsky_pipeline", "worker")


class ChildProcess:
    """A running child: its pid, its event pipe if it has one, and our end of its liveness pipe."""

    def __init__(
        self,
        popen: "subprocess.Popen[bytes]",
        events: int | None = None,
        liveness: int | None = None,
        watcher: "subprocess.Popen[bytes] | None" = None,
    ) -> None:
        self.pid = popen.pid
        self.events = trio.lowlevel.FdStream(events) if events is not None else None
        self._popen = popen
        self._liveness = liveness
        self._watcher = watcher
        self._pidfd = os.pidfd_open(popen.pid)

    async def wait(self) -> Exit:
        """Return how the process ended."""
        await trio.lowlevel.wait_readable(self._pidfd)
        code = self._popen.wait()
        return Exit(signal=-code) if code < 0 else Exit(code=code)

    def send(self, number: int) -> None:
        """Send a signal; SIGKILL goes to the whole process group. Too late is no error."""
        if self._popen.returncode is not None:
            return
        try:
            if number == signal.SIGKILL:
                # The backends of PostgreSQL have sessions of their own. Those that do not run (a
                # stopped one) would outlive their postmaster and keep the next one from starting.
                family = descendants(self.pid)
                os.killpg(self.pid, number)
                for member in family:
                    with suppress(ProcessLookupError):
                        os.kill(member, number)
            else:
                signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass

    def tell(self, line: str) -> None:
        """Send a worker a line; one that does not read, or has ended, misses it."""
        if self._liveness is not None:
            with suppress(OSError):
                os.set_blocking(self._liveness, False)
                os.write(self._liveness, f"{line}\n".encode())

    async def close(self) -> None:
        """Free the descriptors of a process that has ended."""
        os.close(self._pidfd)
        if self._liveness is not None:
            os.close(self._liveness)
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.wait()
        if self.events is not None:
            await self.events.aclose()


def descendants(pid: int) -> dict[int, str]:
    """Return the children of a process and theirs, with their states as proc(5) has them."""
    children: dict[int, list[int]] = {}
    states: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            own, _, rest = entry.read_text(errors="replace").rpartition(")")
            words = rest.split()
            number = int(own.split(maxsplit=1)[0])
            states[number] = words[0]
            children.setdefault(int(words[1]), []).append(number)
    found: dict[int, str] = {}
    left = [pid]
    while left:
        for child in children.get(left.pop(), ()):
            found[child] = states[child]
            left.append(child)
    return found


def spawn_worker(
    program: Sequence[str],
    role: str,
    instance: int,
    settings: Settings,
    lock: Lock,
    *,
    blameless: bool = False,
) -> ChildProcess:
    """Start a worker that holds `lock`, with its three pipes. Raises OSError.

    `blameless`: the worker before it did not end because of its work.
    """
    encoded = encode_settings(settings)
    pipes: list[int] = []
    try:
        settings_read, settings_write = _pipe(pipes)
        events_read, events_write = _pipe(pipes)
        liveness_read, liveness_write = _pipe(pipes)
        os.write(settings_write, encoded)  # fits into the pipe, so this cannot block
        popen = subprocess.Popen(
            [
                *(*program, role, "--instance", str(instance), *advice.options()),
                *("--settings-fd", str(settings_read)),
                *("--events-fd", str(events_write)),
                *("--liveness-fd", str(liveness_read)),
            ],
            stdin=subprocess.DEVNULL,
            env=worker_environment() | ({BLAMELESS: "1"} if blameless else {}),
            pass_fds=(settings_read, events_write, liveness_read, lock.descriptor),
            process_group=0,  # Ctrl-C reaches the supervisor alone
        )
        process = ChildProcess(popen, events_read, liveness_write)
        pipes = [settings_read, settings_write, events_write, liveness_read]
    finally:
        for descriptor in pipes:
            os.close(descriptor)
    return process


def spawn_store(program: StoreProgram, lock: Lock, run_dir: Path, grace: float) -> ChildProcess:
    """Start an embedded store that holds `lock`, and its guard. Raises OSError.

    When we are killed, the guard gives the workers of `run_dir` up to `grace` seconds to drain.
    """
    popen = program.start(pass_fds=(lock.descriptor,))
    liveness_read, liveness_write = os.pipe()
    try:
        watch = guard.arguments(
            pid=popen.pid, liveness=liveness_read, stop_signal=program.stop_signal,
            locks=run_dir / "locks", patience=grace,
        )  # fmt: skip
        watcher = subprocess.Popen(
            watch, stdin=subprocess.DEVNULL, env=worker_environment(), pass_fds=(liveness_read,),
            process_group=0,
        )  # fmt: skip
    except OSError:
        os.close(liveness_write)
        popen.kill()
        popen.wait()
        raise
    finally:
        os.close(liveness_read)
    return ChildProcess(popen, liveness=liveness_write, watcher=watcher)


def worker_environment() -> dict[str, str]:
    """Return our environment without the variables of systemd, and with unbuffered output.

    Unless the operator chose otherwise, glibc gives memory back: an ingester that was sent messages
    of 5 MB kept 263 MB without these two settings, and 143 MB with them. One arena is enough for
    threads that mostly hold the interpreter's lock.
    """
    environment = dict(os.environ)
    notify.strip(environment)
    environment["PYTHONUNBUFFERED"] = "1"
    environment.setdefault("MALLOC_ARENA_MAX", "1")
    environment.setdefault("MALLOC_MMAP_THRESHOLD_", str(1024 * 1024))
    return environment


def _pipe(opened: list[int]) -> tuple[int, int]:
    ends = os.pipe()
    opened.extend(ends)
    return ends
