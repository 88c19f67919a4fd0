"""Two relays of one network; one is killed, and then the ingester: no gap, no duplicate."""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rsky_pipeline.demo.processes import Simulation
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.names import FIREHOSE_LIVE
from tests.crash.test_kill import EVERYBODY, kill
from tests.pipelines import Running
from tests.stores import scratch_directory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
# The same seed and a clock of their own: both tell the same story, byte for byte.
OPTIONS = (
    "--rate=300", "--accounts=100", "--history=10", "--seed=23", "--events=7000", "--fixed-clock",
)  # fmt: skip


class Tail:
    """Everything that is appended to firehose_live, read by a group of its own.

    What a group has not read is not trimmed.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.payloads: list[bytes] = []

    def start(self) -> None:
        self._store.call("XGROUP", "CREATE", FIREHOSE_LIVE, "tail", "0", "MKSTREAM")
        self._thread.start()

    def end(self) -> None:
        """Read to the end, and check that nothing is missing."""
        self._ended.set()
        self._thread.join(60)
        info: list[Any] = self._store.call("XINFO", "STREAM", FIREHOSE_LIVE)
        added = dict(zip(info[::2], info[1::2], strict=True))[b"entries-added"]
        assert len(self.payloads) == added

    def _run(self) -> None:
        read = ("XREADGROUP", "GROUP", "tail", "tail", "COUNT", 5_000, "NOACK", "STREAMS")
        while True:
            ended = self._ended.is_set()
            found = self._store.call(*read, FIREHOSE_LIVE, ">")
            if found:
                [[_, entries]] = found
                self.payloads += [fields[1] for _, fields in entries]
            elif ended:
                return
            else:
                self._ended.wait(0.05)


@contextmanager
def pipeline_on_two(folder: Path) -> Iterator[tuple[Running, Simulation]]:
    """Run a pipeline that follows a relay, and another one that is only a relay."""
    (folder / "other").mkdir()
    started: list[Simulation] = []
    running = None
    try:
        started += [Simulation(place, OPTIONS) for place in (folder, folder / "other")]
        own, other = random.sample(started, 2)  # either may be ahead
        relays = f"{own.environment['RSKY_PIPELINE_RELAY_HOSTS']},{other.relay}"
        running = Running.start(folder, own, {"RSKY_PIPELINE_RELAY_HOSTS": relays})
        yield running, other
    finally:
        if running is not None:
            running.observer.close()
            running.process.end()
        for simulation in started:
            simulation.process.end()


def test_a_killed_relay_and_a_killed_ingester_make_no_gap_and_no_duplicate() -> None:
    with scratch_directory() as folder, pipeline_on_two(folder) as (running, other):
        running.wait_for(lambda: "valkey" in running.pids())
        tail = Tail(connect(running.settings.redis_url or "", name="tail"))
        tail.start()
        running.wait_for(lambda: running.pids().keys() == EVERYBODY)
        seconds = random.uniform(0.0, 4.0)
        time.sleep(seconds)
        os.kill(other.process.pid, signal.SIGKILL)
        running.wait_for(lambda: running.observer.rows().get("record", 0) > 1_000)
        kill(running, "ingester-1")
        kill(running, "ingester-1")
        running.simulation.control.stop()
        running.wait_until_indexed(150)
        assert running.differences() == [], seconds
        assert running.observer.dead_letters() == {}
        tail.end()
    changes = [json.loads(payload) for payload in tail.payloads]
    told = Counter(
        (event["did"], event["rev"], event["collection"], event["rkey"])
        for event in changes
        if "rkey" in event
    )
    assert [change for change, count in told.items() if count > 1] == []
    assert len(told) > 2_000
