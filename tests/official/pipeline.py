"""Our pipeline as it follows the official network, with embedded stores and an open database."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rsky_pipeline.configuration.load import load
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.sources import PREFIX
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.demo.figures import NOT_LISTED, Observer
from rsky_pipeline.demo.processes import PipelineProcess, clean_environment
from rsky_pipeline.demo.simulator.control import Control, SimulationProgress
from rsky_pipeline.embedded.locations import resolve_directories, run_directory, store_urls
from rsky_pipeline.runtime.errors import WorkerError
from rsky_pipeline.supervisor import client
from tests.official.network import Network, free_port, wait_until
from tests.pipelines import command_succeeds

READY_SECONDS = 120.0
PATIENCE_SECONDS = 300.0


@dataclass(slots=True)
class Following:
    """A pipeline that follows the network's PDSes and its labeler."""

    network: Network
    folder: Path
    environ: dict[str, str]
    settings: Settings
    process: PipelineProcess
    kills: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Its database."""
        return self.settings.database_url or ""

    @property
    def schema(self) -> str:
        """The schema of the AppView's tables."""
        return self.settings.database_schema

    def command(self, *words: str) -> str:
        """Run a command of the program beside it."""
        return command_succeeds(self.environ, *words)

    def pids(self) -> dict[str, int]:
        """Return the workers that are ready."""
        try:
            found = client.find(run_directory(self.settings))
        except WorkerError:  # it is not up yet
            return {}
        every = [each for item in found for each in item.status["processes"]]
        return {item["name"]: item["pid"] for item in every if item["state"] == "ready"}

    def findings(self) -> list[str]:
        """Return what its workers find wrong, each with its subject."""
        words = [sys.executable, "-P", "-m", "rsky_pipeline", "status", "--json"]
        result = subprocess.run(words, env=self.environ, capture_output=True, check=False)
        return [
            f"{each['kind']} {each['subject']}"
            for process in json.loads(result.stdout)["processes"]
            for each in process["findings"]
        ]

    def kill_one(self, choose: random.Random, *, stores: bool = True) -> None:
        """Kill a worker, or a store as well, with SIGKILL."""
        pids = {
            name: pid for name, pid in self.pids().items()
            if stores or name.partition("-")[0] in ROLE_NAMES
        }  # fmt: skip
        if pids:
            name = choose.choice(sorted(pids))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[name], signal.SIGKILL)
                role = name.partition("-")[0]
                self.kills[role] = self.kills.get(role, 0) + 1

    def wait(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Return when everything that the network has published is indexed."""
        labels = self.network.last_label()
        live = self.settings.initial_cursor != "live"  # else nothing may have come yet
        for pds in self.network.pdses:
            progress = SimulationProgress(True, 0, pds.last_seq() if live else 0, 0, labels)
            self._wait_for(pds.relay, progress, seconds)

    def _wait_for(self, relay: str, progress: SimulationProgress, seconds: float) -> None:
        observer = Observer(self.settings, Control(relay), relay, self.network.ozone)
        try:
            wait_until(
                lambda: not self._left(observer, progress),
                lambda: f"{self._left(observer, progress)}\n{self.process.failure('waits')}",
                seconds,
            )
        finally:
            observer.close()

    def _left(self, observer: Observer, progress: SimulationProgress) -> list[str]:
        found = observer.waiting(progress)
        listed = self.settings.enumerate_repos
        return [each for each in found if listed or each != NOT_LISTED]


@contextlib.contextmanager
def following(network: Network, folder: Path, **changes: str) -> Iterator[Following]:
    """Run a pipeline until the block ends."""
    folder.mkdir()
    (folder / "official.toml").touch()  # named, so that no file of a default place is read
    own = {
        "CONFIG": str(folder / "official.toml"), "DATA_DIR": str(folder / "data"),
        "RUN_DIR": str(folder / "run"), "LOG_FORMAT": "text", "RESYNC_PAUSE_SECONDS": "5",
        "RELAY_HOSTS": ",".join(pds.relay for pds in network.pdses), "PLC_URL": network.plc,
        "LABELER_HOSTS": network.ozone, "HANDLE_RESOLVER_URL": network.resolver,
        "ALLOW_PRIVATE_HOSTS": "true", "EXPECTED_RATE_MIN": "0",
        "EMBEDDED_DATABASE_PORT": str(free_port()),
        **{f"{role.upper()}_METRICS_PORT": "0" for role in (*ROLE_NAMES, "supervisor")},
    }  # fmt: skip
    environ = clean_environment() | _prefixed(own) | _prefixed(changes)
    settings = store_urls(resolve_directories(load(None, environ, {}).settings))
    process = PipelineProcess(["run", "--role", "all"], environ, folder / "pipeline.log")
    found = Following(network, folder, environ, settings, process)
    try:
        wait_until(
            lambda: len(found.pids()) >= len(ROLE_NAMES),
            lambda: str(process.failure("is not ready")),
            READY_SECONDS,
        )
        yield found
    finally:
        process.end()


def _prefixed(names: Mapping[str, str]) -> dict[str, str]:
    return {f"{PREFIX}{name.upper()}": value for name, value in names.items()}
