"""The two processes of a demonstration, in a world of their own.

Nothing of the caller's configuration reaches them: a demonstration must not touch stores or relays
that somebody uses.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from rsky_pipeline.configuration.settings import declarations
from rsky_pipeline.configuration.sources import PREFIX
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.demo.simulator.control import Control

START_SECONDS = 60.0
STOP_SECONDS = 30.0


class DemonstrationError(Exception):
    """A process failed; the message names it and has the end of its log."""


class PipelineProcess:
    """A `rsky-pipeline` command in the background; its standard error goes to a log file.

    `wrapper` is a program that executes it in its own place, such as nsenter.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        log: Path,
        *,
        talks: bool = False,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.name = arguments[0]
        self._log = log
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [*wrapper, sys.executable, "-P", "-m", "rsky_pipeline", *arguments],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else stream,
                stderr=stream,
                start_new_session=True,  # Ctrl-C is for the demonstration to answer
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def first_line(self, patience: float) -> bytes:
        """Return its first line of output, or end it. Raises DemonstrationError."""
        stream: IO[bytes] | None = self._process.stdout
        assert stream is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            line = stream.readline() if selector.select(patience) else b""
        if not line:
            self.end()
            raise self.failure(f"said nothing for {patience:.0f} s")
        return line

    def failure(self, what: str) -> DemonstrationError:
        """Return the exception for a failure, with the end of its log."""
        code = self._process.poll()
        how = "" if code is None else f" (exit code {code})"
        tail = self._log.read_text(errors="replace")[-3_000:]
        return DemonstrationError(f"{self.name} {what}{how}; the end of {self._log}:\n{tail}")

    def end(self) -> None:
        """End it: by SIGTERM, then by SIGKILL."""
        for number, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
            if not self.is_running:
                break
            self._process.send_signal(number)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        if self._process.stdout is not None:
            self._process.stdout.close()


class Simulation:
    """The simulated network in a process of its own."""

    def __init__(
        self, folder: Path, options: Sequence[str], start_seconds: float = START_SECONDS,
        wrapper: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.process = PipelineProcess(
            ["simulate", "--json", *options], clean_environment(), folder / "network.log",
            talks=True, wrapper=wrapper,
        )  # fmt: skip
        announced = json.loads(self.process.first_line(start_seconds))
        self.urls: dict[str, str] = announced["urls"]
        self.relay, self.labeler = self.urls["relay"], self.urls["labeler"]
        self.environment: dict[str, str] = announced["environment"]
        self.control = Control(self.relay)


def clean_environment() -> dict[str, str]:
    """Return the environment without anything that configures the pipeline."""
    legacy = {name for info in declarations().values() for name in info.legacy_environment}
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(PREFIX) and name not in legacy
    }


def pipeline_environment(folder: Path, simulation: Simulation) -> dict[str, str]:
    """Return the environment of a pipeline that follows a simulation and lives in a folder."""
    empty = folder / "demo.toml"  # named, so that no file of a default place is read
    empty.touch()
    own = {
        "CONFIG": str(empty),
        "DATA_DIR": str(folder / "data"),
        "RUN_DIR": str(folder / "run"),
        "RESYNC_PAUSE_SECONDS": "5",
        "LOG_FORMAT": "text",
        **{f"{role.upper()}_METRICS_PORT": "0" for role in (*ROLE_NAMES, "supervisor")},
    }
    named = {f"{PREFIX}{name}": value for name, value in own.items()}
    return clean_environment() | named | simulation.environment
