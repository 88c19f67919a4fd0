"""Runs supervisor doubles in a scratch directory, and looks at what they do from outside."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing

from rsky_pipeline.cli import main as command_line
from rsky_pipeline.supervisor import client
from rsky_pipeline.supervisor.errors import NotRunningError

ALL = ("ingester", "backfiller", "indexer")
PATIENCE_SECONDS = 60.0


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for something outside of this process; fail with words when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s for: {what}")
        time.sleep(0.02)


class Running:
    """One supervisor process."""

    def __init__(self, home: "Pipeline", process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._home = home
        self._log = log
        self.process = process

    @property
    def log(self) -> str:
        return self._log.read_text()

    def logged(self, pattern: str) -> bool:
        return re.search(pattern, self.log) is not None

    def until_logged(self, pattern: str, seconds: float = PATIENCE_SECONDS) -> None:
        def seen_or_dead() -> bool:
            return self.logged(pattern) or self.process.poll() is not None

        until(seen_or_dead, f"{pattern!r} in the log", seconds)
        assert self.logged(pattern), self.log

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for the end and return the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"still running:\n{self.log}") from error


class Pipeline:
    """A data directory and the supervisors that work in it."""

    def __init__(self, directory: Path) -> None:
        self.data = directory
        self.run_dir = directory / "run"
        self._supervisors: list[Running] = []
        self.behave()

    def behave(self, **roles: dict[str, Any]) -> None:
        """Say how the worker doubles of each role behave from now on."""
        temporary = self.data / "behaviour.new"
        temporary.write_text(json.dumps(roles))
        temporary.rename(self.data / "behaviour.json")

    def start(self, *arguments: str, **environment: str) -> Running:
        """Start a supervisor; arguments are those of the double."""
        log = self.data / f"log-{len(self._supervisors)}.txt"
        command = [sys.executable, "-m", "tests.integration.supervisor.supervisor_double"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, str(self.data), *(arguments or ALL)],
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
            )
        running = Running(self, process, log)
        self._supervisors.append(running)
        return running

    def up(self, *arguments: str, **environment: str) -> Running:
        """Start a supervisor and wait until everything is up."""
        running = self.start(*arguments, **environment)
        running.until_logged("INFO +running")
        return running

    def configure(self, **settings: Any) -> None:
        """Change the configuration that the doubles of supervisors read again."""
        (self.data / "settings.json").write_text(json.dumps(settings))

    def seen(self, role: str) -> dict[str, Any]:
        """Return the settings that the newest worker of a role got."""
        found: dict[str, Any] = json.loads((self.data / f"seen-{role}.json").read_text())
        return found

    def trace(self) -> list[str]:
        """Return what the workers did, without their pids."""
        path = self.data / "trace.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.rpartition(" ")[0] for line in lines]

    def status(self) -> dict[str, Any]:
        """Return the status of the only supervisor."""
        return client.find(self.run_dir)[0].status

    def child(self, name: str) -> dict[str, Any]:
        """Return what the status says about one process."""
        found: dict[str, Any]
        [found] = [one for one in self.status()["processes"] if one["name"] == name]
        return found

    def command(self, *arguments: str) -> click.testing.Result:
        """Run a command of the program on this directory."""
        runner = click.testing.CliRunner()
        return runner.invoke(command_line, [*arguments, "--data-dir", str(self.data)])

    def close(self) -> None:
        """Kill what a failed test left behind."""
        for running in self._supervisors:
            if running.process.poll() is None:
                running.signal(signal.SIGKILL)
                running.ended()
        self.behave()
        for line in (self.data / "trace.txt").read_text().splitlines() if self.trace() else []:
            pid = int(line.rpartition(" ")[2])
            if is_double(pid):
                os.kill(pid, signal.SIGKILL)

    def nobody_runs(self) -> bool:
        """Tell whether no supervisor answers."""
        try:
            client.find(self.run_dir)
        except NotRunningError:
            return True
        return False


def is_double(pid: int) -> bool:
    """Tell whether this process is a worker double that still runs."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"worker_double" in command
