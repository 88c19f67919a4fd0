"""One demonstration: start both processes, watch them, stop in order, compare every row."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rsky_pipeline.configuration.load import load
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.demo.figures import Observer
from rsky_pipeline.demo.processes import PipelineProcess, Simulation, pipeline_environment
from rsky_pipeline.demo.simulator.compare import compare
from rsky_pipeline.demo.view import View, opened, summary
from rsky_pipeline.embedded.locations import resolve_directories, store_urls

DRAIN_SECONDS = 120.0  # a repo that breaks twice waits a minute before it is fetched again
LOOK_SECONDS = 1.0
QUIET_LOOKS = 3  # nothing may be on its way for so many looks
QUIET_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class Ending:
    """How a demonstration ended."""

    differences: int
    waiting: str  # work that was not done in time, in words
    stopped_in_order: bool


class Demonstration:
    """Both processes in a folder of their own, watched and compared."""

    def __init__(self, folder: Path, seconds: float, options: list[str]) -> None:
        """`options` are those of `rsky-pipeline simulate`."""
        self._folder = folder
        self._console = Console()
        self._seconds = seconds
        self._options = options
        self._environment: dict[str, str] = {}

    def run(self) -> Ending:
        """Run the network, stop, wait, compare. Raises DemonstrationError, SimulationError."""
        simulation = Simulation(self._folder, self._options)
        pipeline: PipelineProcess | None = None
        try:
            self._environment = pipeline_environment(self._folder, simulation)
            log = self._folder / "pipeline.log"
            pipeline = PipelineProcess(["run", "--role", "all"], self._environment, log)
            self._console.print(
                f"simulated relay at {simulation.relay}, log in {log}", soft_wrap=True
            )
            settings = self._settings()
            observer = Observer(settings, simulation.control, simulation.relay, simulation.labeler)
            with closing(observer):
                self._watch(observer, pipeline)
                return self._finish(observer, simulation, settings, pipeline)
        finally:
            if pipeline is not None:
                pipeline.end()
            simulation.process.end()

    def _settings(self) -> Settings:
        return store_urls(resolve_directories(load(None, self._environment, {}).settings))

    def _watch(self, observer: Observer, pipeline: PipelineProcess) -> None:
        end = time.monotonic() + self._seconds
        with _noted_interrupts() as interrupts, opened(self._console) as view:
            while (left := end - time.monotonic()) > 0 and not interrupts:
                if not pipeline.is_running:
                    raise pipeline.failure("ended")
                view.show(observer.look(), f"{left:.0f} s left")
                time.sleep(min(LOOK_SECONDS, left))

    def _finish(
        self, observer: Observer, simulation: Simulation, settings: Settings,
        pipeline: PipelineProcess,
    ) -> Ending:  # fmt: skip
        progress = simulation.control.stop()
        self._console.print(
            f"published {progress.published:,} events and {progress.label_frames:,} frames of "
            "labels; waiting until all of it is indexed",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        with opened(self._console) as view:
            waiting = self._wait(observer, view, pipeline)
        if waiting:
            self._console.print(
                f"after {DRAIN_SECONDS:.0f} s there are still: {waiting}", soft_wrap=True
            )
        truth = simulation.control.truth(handles=True)
        reports = compare(settings.database_url or "", settings.database_schema, truth)
        dead = observer.dead_letters()
        observer.close()
        stopped = self._call("stop", "--ordered")
        differences = summary(self._console, reports, dead)
        return Ending(differences, waiting, stopped == 0)

    def _wait(self, observer: Observer, view: View, pipeline: PipelineProcess) -> str:
        """Wait until all work is done; return the work that is left at the deadline, in words."""
        deadline = time.monotonic() + DRAIN_SECONDS
        quiet, waiting = 0, ["everything"]
        while time.monotonic() < deadline:
            figures = observer.look()
            view.show(figures, "waiting")
            if not pipeline.is_running:
                raise pipeline.failure("ended")
            if figures.progress is not None:
                waiting = observer.waiting(figures.progress)
                quiet = 0 if waiting else quiet + 1
            if quiet >= QUIET_LOOKS:
                return ""
            time.sleep(QUIET_SECONDS)
        return ", ".join(waiting)

    def _call(self, *arguments: str) -> int:
        command = [sys.executable, "-P", "-m", "rsky_pipeline", *arguments]
        return subprocess.run(command, env=self._environment, check=False).returncode


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """Collect signals that ask for an end; a second one interrupts.

    An exception that is raised wherever the program happens to be may be lost in a library.
    """
    noted: list[int] = []

    def note(number: int, _: Any) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Have SIGTERM end the demonstration as Ctrl-C does, so that no process is left behind."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
