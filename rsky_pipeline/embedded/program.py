"""A prepared embedded store as a value: everything needed to start it."""

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rsky_pipeline.embedded.accounts import SystemAccount
from rsky_pipeline.runtime.log_file import open_private

MAX_LOG_BYTES = 10_000_000


@dataclass(frozen=True, slots=True)
class StoreProgram:
    """A prepared store server: its directories exist, its process is not started."""

    name: str
    arguments: tuple[str, ...]
    url: str
    directory: Path  # holds everything that must survive a restart
    log_path: Path
    stop_signal: int  # ends it in order: open connections are dropped, nothing is lost
    answers: Callable[[], bool]  # blocking, at most a few seconds
    account: SystemAccount | None = None  # None: the account of the caller
    environment: Mapping[str, str] = field(default_factory=lambda: {"LC_ALL": "C"})

    def start(self, pass_fds: tuple[int, ...] = ()) -> "subprocess.Popen[bytes]":
        """Start the server in a process group of its own, its output appended to `log_path`.

        Call it from the main thread. Raises OSError when the program cannot be executed.
        """
        rotate_log(self.log_path)
        log = open_private(self.log_path)
        try:
            return subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath), **self.environment},
                pass_fds=pass_fds,
                process_group=0,
                user=self.account.uid if self.account else None,
                group=self.account.gid if self.account else None,
                extra_groups=[] if self.account else None,
                umask=0o077,
            )
        finally:
            os.close(log)

    def last_log_lines(self, count: int = 5) -> list[str]:
        """Return the end of the server's log, for the report of a failed start."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - 8192))
                return log.read().decode(errors="replace").splitlines()[-count:]
        except FileNotFoundError:
            return []


def rotate_log(path: Path) -> None:
    """Move a log that has grown past `MAX_LOG_BYTES` aside; one old file is kept."""
    try:
        if path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_name(path.name + ".1"))
    except FileNotFoundError:
        pass
