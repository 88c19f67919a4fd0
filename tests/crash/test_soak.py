"""Random `kill -9` of everything, for as long as one likes: `KILLS=1000 make test-long`.

Live events, the history of all repos, deletions of records and purges of accounts are under way
meanwhile. Processes are killed in whatever state they are: starting, recovering, beside each other.
A round ends with the supervisor, at times with all at once, as if the power had failed.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from rsky_pipeline.cli.exit_codes import ExitCode
from tests.crash.test_kill import EVERYBODY, START_SECONDS
from tests.pipelines import Running, command_succeeds, pipeline_on

KILLS = int(os.environ.get("KILLS") or 50)
SEED = int(os.environ.get("KILLS_SEED") or time.time())
ROUND = 5  # children of one supervisor that are killed; more would count as a crash loop
REST_SECONDS = (0.2, 3.0)  # between the start of everybody and the next round
LATEST_SECONDS = 900.0  # for all that was put off meanwhile
# A round takes about ten seconds; a machine may take three times as long.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1_800 + 30 * KILLS)]


class Killer:
    """Kills processes of a pipeline at random, and counts them by name."""

    def __init__(self, running: Running) -> None:
        self.killed = dict.fromkeys((*sorted(EVERYBODY), "supervisor"), 0)
        self._running = running
        self._random = random.Random(SEED)

    @property
    def total(self) -> int:
        return sum(self.killed.values())

    def round(self) -> None:
        """Kill some children, then the supervisor; return once a new one has started everybody."""
        for _ in range(self._random.randint(1, ROUND)):
            alive = self._alive()
            if alive:
                self._kill(*self._random.choice(sorted(alive.items())))
            time.sleep(self._random.uniform(0.0, 1.0))
        everybody = self._alive() if self._random.random() < 0.5 else {}
        self._kill("supervisor", self._running.process.pid)
        for name, pid in everybody.items():
            self._kill(name, pid)
        self._running.process.end()
        self._running.start_again()
        self._running.wait_for(lambda: self._running.pids().keys() == EVERYBODY, START_SECONDS)
        time.sleep(self._random.uniform(*REST_SECONDS))

    def _alive(self) -> dict[str, int]:
        found = self._running.observer.look().processes
        return {item["name"]: item["pid"] for item in found if item["pid"]}

    def _kill(self, name: str, pid: int) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it followed one that was killed just before
        self.killed[name] += 1


def is_healthy(running: Running) -> bool:
    """Whether `status` finds nothing wrong while events arrive."""
    command = [sys.executable, "-P", "-m", "rsky_pipeline", "status"]
    ended = subprocess.run(command, env=running.environ, capture_output=True, check=False)
    return ended.returncode == ExitCode.OK


def test_random_kills_lose_nothing() -> None:
    options = ("--rate=150", "--accounts=2000", "--history=20", f"--seed={SEED % 1_000_000}")
    with pipeline_on(*options) as running:
        running.wait_for(lambda: running.pids().keys() == EVERYBODY, START_SECONDS)
        killer = Killer(running)
        began = time.monotonic()
        while killer.total < KILLS:
            killer.round()
        seconds = time.monotonic() - began
        running.wait_for(lambda: is_healthy(running), LATEST_SECONDS)
        running.simulation.control.stop()
        running.wait_until_indexed(LATEST_SECONDS)
        events = running.simulation.control.progress().seq
        print(f"seed {SEED}: {killer.total} kills in {seconds:.0f} s, {events:,} events: "
              + ", ".join(f"{name} {count}" for name, count in killer.killed.items()))  # fmt: skip
        assert running.differences() == []
        assert running.observer.dead_letters() == {}
        assert running.pids().keys() == EVERYBODY
        command_succeeds(running.environ, "verify", "--window", "5s")
