"""The whole pipeline in processes of its own, on a network that a simulator serves."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rsky_pipeline.configuration.load import load
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.sources import PREFIX
from rsky_pipeline.demo.figures import Observer
from rsky_pipeline.demo.processes import PipelineProcess, Simulation, pipeline_environment
from rsky_pipeline.demo.simulator.compare import TableReport, compare
from rsky_pipeline.embedded.locations import resolve_directories, store_urls
from tests.stores import scratch_directory

PREPARE_SECONDS = 600.0  # for a simulator that makes its events ahead


@dataclass(frozen=True, slots=True)
class Place:
    """Where the processes run: the words before their commands.

    `prepare` is called when the simulation is there, and the pipeline is not.
    """

    pipeline: Sequence[str] = ()
    simulator: Sequence[str] = ()
    prepare: Callable[[Simulation], None] = lambda _: None


@dataclass(slots=True)
class Running:
    """A simulation and a pipeline that follows it."""

    simulation: Simulation
    settings: Settings
    observer: Observer
    environ: dict[str, str]
    log: Path
    wrapper: Sequence[str]
    process: PipelineProcess

    @classmethod
    def start(
        cls,
        folder: Path,
        simulation: Simulation,
        changes: Mapping[str, str],
        wrapper: Sequence[str] = (),
    ) -> "Running":
        """Start a pipeline; stores of one's own are set up as the documentation says before."""
        environ = pipeline_environment(folder, simulation) | dict(changes)
        if f"{PREFIX}DATABASE_URL" in changes:
            command_succeeds(environ, "config", "check", wrapper=wrapper)
            command_succeeds(environ, "db", "init", wrapper=wrapper)
        settings = store_urls(resolve_directories(load(None, environ, {}).settings))
        control, log = simulation.control, folder / "pipeline.log"
        observer = Observer(settings, control, settings.relay_hosts[0], settings.labeler_hosts[0])
        process = PipelineProcess(["run", "--role", "all"], environ, log, wrapper=wrapper)
        return cls(simulation, settings, observer, environ, log, wrapper, process)

    def start_again(self) -> None:
        """Start a pipeline in the place of one that has ended."""
        self.process = PipelineProcess(
            ["run", "--role", "all"], self.environ, self.log, wrapper=self.wrapper
        )

    def command(self, *words: str) -> str:
        """Run another command of the program where the pipeline runs; return its output."""
        return command_succeeds(self.environ, *words, wrapper=self.wrapper)

    def pids(self) -> dict[str, int]:
        """Return the processes that are ready, by name."""
        found = self.observer.look().processes
        return {item["name"]: item["pid"] for item in found if item["state"] == "ready"}

    def wait_until_indexed(self, seconds: float = 150.0) -> None:
        """Return when nothing has been on its way for a moment."""
        quiet = 0

        def is_quiet() -> bool:
            nonlocal quiet
            waiting = self.observer.waiting(self.simulation.control.progress())
            quiet = 0 if waiting else quiet + 1
            return quiet > 2

        self.wait_for(is_quiet, seconds)

    def differences(self) -> list[TableReport]:
        """Compare the database with what was published; return the tables that differ."""
        truth = self.simulation.control.truth(handles=True)
        url, schema = self.settings.database_url or "", self.settings.database_schema
        return [report for report in compare(url, schema, truth) if report.differences]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Return when a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            if not self.process.is_running:
                raise self.process.failure("ended")
            if time.monotonic() > deadline:
                waiting = self.observer.waiting(self.simulation.control.progress())
                raise AssertionError(f"still not true after {seconds:.0f} s; waiting: {waiting}")
            time.sleep(0.3)


def command_succeeds(environ: Mapping[str, str], *command: str, wrapper: Sequence[str] = ()) -> str:
    """Run a command of the program and return its output."""
    result = subprocess.run(
        [*wrapper, sys.executable, "-P", "-m", "rsky_pipeline", *command],
        env=environ, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{' '.join(command)}: {result.stdout}{result.stderr}"
    return result.stdout


@contextmanager
def pipeline_on(*options: str, **changes: str) -> Iterator[Running]:
    """Run the whole pipeline on a network; both end with the block."""
    with pipeline_at(Place(), options, changes) as running:
        yield running


@contextmanager
def pipeline_at(
    place: Place, options: Sequence[str], changes: Mapping[str, str]
) -> Iterator[Running]:
    """Run the whole pipeline on a network, both in their places, until the block ends."""
    with scratch_directory() as folder:
        simulation = Simulation(folder, options, PREPARE_SECONDS, place.simulator)
        running = None
        try:
            place.prepare(simulation)
            running = Running.start(folder, simulation, changes, place.pipeline)
            yield running
        finally:
            if running is not None:
                running.observer.close()
                running.process.end()
            simulation.process.end()
