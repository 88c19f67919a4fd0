"""`kill -9` of anything, while 1,000 events a second are published, loses and repeats nothing."""

import os
import signal

import pytest

from tests.pipelines import Running, pipeline_on

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
START_SECONDS = 180.0  # for a worker that recovers what was pending, on a busy machine
EVERYBODY = {"ingester-1", "backfiller-1", "indexer-1", "valkey", "postgres"}


def kill(running: Running, name: str) -> None:
    """Kill a child and wait until another one has taken its place and everybody is ready."""
    running.wait_for(lambda: running.pids().keys() == EVERYBODY, START_SECONDS)
    victim = running.pids()[name]
    os.kill(victim, signal.SIGKILL)
    running.wait_for(lambda: running.pids().get(name, victim) != victim, START_SECONDS)
    running.wait_for(lambda: running.pids().keys() == EVERYBODY, START_SECONDS)


def kill_supervisor(running: Running) -> None:
    """Kill the supervisor and start another one, which waits until the survivors have ended."""
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.end()
    running.start_again()
    running.wait_for(lambda: running.pids().keys() == EVERYBODY, START_SECONDS)


def is_indexing(running: Running) -> bool:
    return running.observer.rows().get("record", 0) > 1_000


def ends_equal(running: Running) -> None:
    running.simulation.control.stop()
    running.wait_until_indexed(300)
    assert running.differences() == []
    assert running.observer.dead_letters() == {}


def test_killed_processes_lose_nothing() -> None:
    with pipeline_on("--rate=1000", "--history=20") as running:
        for name in ("backfiller-1", "valkey", "indexer-1", "postgres", "ingester-1"):
            kill(running, name)
        kill_supervisor(running)
        ends_equal(running)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(EVERYBODY))
def test_a_child_that_is_killed_twice_loses_nothing(name: str) -> None:
    with pipeline_on("--rate=1000", "--history=60") as running:
        if name != "backfiller-1":
            running.wait_for(lambda: is_indexing(running))
        kill(running, name)
        kill(running, name)
        ends_equal(running)


@pytest.mark.long
def test_a_supervisor_that_is_killed_early_loses_nothing() -> None:
    with pipeline_on("--rate=1000") as running:
        running.wait_for(lambda: is_indexing(running))
        kill_supervisor(running)
        ends_equal(running)
