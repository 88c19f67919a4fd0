"""A booted copy of the Debian, in a network of its own that has loopback alone.

The test enters that network too, so that a simulation which it starts is what the units reach at
127.0.0.1, and their stores are what it reads there. All is gone at the end.
"""

import ctypes
import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.real.servers import ENDS_WITH_US

SEARCHED = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
BOOT_SECONDS = 90.0
REBOOTS = 133  # exit code of systemd-nspawn
CONSOLE = "console.log"
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP

Result = subprocess.CompletedProcess[str]


@contextmanager
def own_network() -> Iterator[None]:
    """Move this thread, and all that it starts, into a network that has loopback alone."""
    library = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if library.unshare(_NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "no network of its own")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            flags = struct.pack("16sH14x", b"lo", _UP)
            fcntl.ioctl(any_socket, _SET_FLAGS, flags)
        yield
    finally:
        if library.setns(before, _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "no way back to the network")
        os.close(before)


@contextmanager
def overlay(lower: Path, folder: Path) -> Iterator[Path]:
    """Mount what looks like a copy of a folder; what is changed there lies in `folder`."""
    upper, work, merged = (folder / name for name in ("upper", "work", "root"))
    for each in (upper, work, merged):
        each.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True)
    try:
        yield merged
    finally:
        subprocess.run(["umount", "--lazy", "--recursive", str(merged)], check=True)
        shutil.rmtree(work, ignore_errors=True)


@dataclass(slots=True)
class Container:
    """A Debian that runs; `shared` is a folder that both sides see, /shared inside."""

    root: Path
    shared: Path
    process: "subprocess.Popen[bytes]"

    def leader(self) -> int:
        """Return the process id of its systemd, 0 while there is none."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return int(children.split()[0]) if children.split() else 0

    def run(self, *command: str, seconds: float = 300, stdin: str = "") -> Result:
        """Run a command as root in all its namespaces, with the environment of a login."""
        return subprocess.run(
            ["nsenter", "--target", str(self.leader()), "--all", "env", "-i", "HOME=/root",
             f"PATH={SEARCHED}", "LANG=C.UTF-8", *command],
            capture_output=True, text=True, timeout=seconds, check=False, input=stdin,
        )  # fmt: skip

    def shell(self, line: str, *, code: int | None = 0, seconds: float = 300) -> str:
        """Run a line of a page in a shell, and return its output; None takes any exit code."""
        result = self.run("bash", "-o", "pipefail", "-c", line, seconds=seconds)
        shown = f"{line}\n{result.returncode}: {result.stdout}{result.stderr}"
        assert code is None or result.returncode == code, f"{shown}\n{self.journal(80)}"
        return result.stdout

    def journal(self, lines: int = 4000, *options: str) -> str:
        """Return the end of the journal."""
        words = ("journalctl", "--no-pager", "-o", "short-precise", "-n", str(lines), *options)
        return self.run(*words).stdout

    def active(self, unit: str) -> str:
        """Return the state of a unit as systemd names it."""
        return self.run("systemctl", "is-active", unit).stdout.strip()

    def stops(self) -> list[str]:
        """Return the roles whose units stopped, in order."""
        return re.findall(r"systemd\[1\]: Stopped .*rsky-pipeline (\w+):", self.journal())

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
        """Return when a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"still not: {what}\n{self.journal(60)}"
            time.sleep(0.5)

    def wait_until_up(self) -> None:
        """Return when it has booted."""
        deadline = time.monotonic() + BOOT_SECONDS
        state = "nothing is known yet"
        while True:
            seen = f"{state}: {(self.shared / CONSOLE).read_text(errors='replace')[-3000:]}"
            assert self.process.poll() is None, f"the container ended: {seen}"
            assert time.monotonic() < deadline, f"the container does not boot: {seen}"
            if self.leader():
                asked = self.run("systemctl", "is-system-running")
                state = asked.stdout.strip() or asked.stderr
                if state in ("running", "degraded"):
                    return
            time.sleep(0.5)

    def reboot(self) -> None:
        """Reboot it as an operator does; its program ends then, for whoever started it."""
        self.run("systemctl", "reboot")
        assert self.process.wait(BOOT_SECONDS) == REBOOTS, "it did not reboot"
        self.process = _boot(self.root, self.shared)
        self.wait_until_up()


def _boot(root: Path, shared: Path) -> "subprocess.Popen[bytes]":
    with (shared / CONSOLE).open("ab") as output:
        return subprocess.Popen(
            [*ENDS_WITH_US, "systemd-nspawn", "--directory", str(root), "--boot", "--register=no",
             "--keep-unit", "--machine=host", f"--bind={shared}:/shared"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


@contextmanager
def booted(root: Path, shared: Path) -> Iterator[Container]:
    """Boot a root; it is shut down with the block."""
    container = Container(root, shared, _boot(root, shared))
    try:
        container.wait_until_up()
        yield container
    finally:
        process = container.process
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
