"""Disks without room, under a running pipeline: nothing stops for good, and nothing is lost."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from rsky_pipeline.demo.processes import Simulation
from tests.pipelines import PREPARE_SECONDS, Running, command_succeeds
from tests.small_disk import SmallDisk, small_disk
from tests.stores import scratch_directory

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
EVERYBODY = {"ingester-1", "backfiller-1", "indexer-1", "valkey", "postgres"}
FULL_SECONDS = 40.0
NETWORK = ("--rate=200", "--history=20", "--accounts=120")


@contextmanager
def pipeline_in(place: Path, changes: Mapping[str, str]) -> Iterator[Running]:
    """Run a pipeline whose log, and whatever is not changed, is in a folder; wait for records."""
    with scratch_directory() as folder:
        simulation = Simulation(folder, NETWORK, PREPARE_SECONDS)
        changes = {name: text.format(folder=folder) for name, text in changes.items()}
        running = Running.start(place, simulation, changes)
        try:
            running.wait_for(lambda: running.pids().keys() == EVERYBODY, 180)
            running.wait_for(lambda: running.observer.rows().get("record", 0) > 500, 180)
            yield running
        finally:
            running.observer.close()
            running.process.end()
            simulation.process.end()


def ends_well(running: Running) -> None:
    running.wait_for(lambda: running.pids().keys() == EVERYBODY, 300)
    before = running.observer.rows().get("record", 0)
    running.wait_for(lambda: running.observer.rows().get("record", 0) > before + 200, 180)
    running.simulation.control.stop()
    running.wait_until_indexed(300)
    assert running.differences() == []
    assert running.observer.dead_letters() == {}
    command_succeeds(running.environ, "verify", "--window", "5s", "--quiet")


def findings(running: Running) -> set[str]:
    """Return the kinds of findings that `status` shows."""
    command = [sys.executable, "-P", "-m", "rsky_pipeline", "status", "--json"]
    done = subprocess.run(command, env=running.environ, capture_output=True, check=False)
    processes = json.loads(done.stdout)["processes"]
    return {finding["kind"] for each in processes for finding in each["findings"]}


def test_a_log_folder_without_room() -> None:
    with small_disk(size="16m") as small:
        elsewhere = {"RSKY_PIPELINE_DATA_DIR": "{folder}/data",
                     "RSKY_PIPELINE_RUN_DIR": "{folder}/run",
                     "RSKY_PIPELINE_LOG_LEVEL": "debug"}  # fmt: skip
        with pipeline_in(small.folder, elsewhere) as running:
            pids = running.pids()
            small.use_up_bytes()
            running.wait_for(lambda: "log" in findings(running), 120)
            before = running.observer.rows()["record"]
            running.wait_for(lambda: running.observer.rows()["record"] > before + 1_000, 120)
            small.make_room()
            running.wait_for(lambda: "log" not in findings(running), 180)
            assert running.pids() == pids, "a process was started again"
            ends_well(running)


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_data_folder_without_room(what: str) -> None:
    """Log, sockets, locks, temporary files and both embedded stores are in it."""
    with small_disk(size="1g", inodes=20_000) as small, pipeline_in(small.folder, {}) as running:
        fill_up(small, what)
        until = time.monotonic() + FULL_SECONDS
        seen: set[str] = set()

        def is_over() -> bool:
            seen.update(findings(running))
            return time.monotonic() > until

        running.wait_for(is_over, 120)
        if what == "bytes":
            assert seen & {"redis_cannot_save", "database_disk", "database", "redis", "log"}, seen
        small.make_room()
        ends_well(running)


def fill_up(small: SmallDisk, what: str) -> None:
    if what == "bytes":
        small.use_up_bytes()
    else:
        small.use_up_inodes()
