"""What `status` makes of what the workers say."""

from dataclasses import replace

import pytest
import trio

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime.health_document import read_health
from rsky_pipeline.supervisor import machine as m
from rsky_pipeline.supervisor import status
from rsky_pipeline.supervisor.child import ChildDriver
from rsky_pipeline.supervisor.children import worker_policy
from rsky_pipeline.supervisor.machine import Phase
from rsky_pipeline.supervisor.spawn import ChildProcess


def never(_: bool) -> ChildProcess:
    raise OSError("nothing is started here")


async def test_a_degraded_worker_is_ready_and_not_healthy() -> None:
    await trio.lowlevel.checkpoint()
    child = ChildDriver("ingester", 1, worker_policy(Settings()), never)
    child.state = replace(child.state, phase=Phase.READY)

    def look() -> tuple[bool, str | None]:
        document = status.document(
            state="running", roles=["ingester"], children=[child], began=0.0, run_dir="/run"
        )
        return document["healthy"], document["processes"][0]["trouble"]

    child.health = read_health({"trouble": None, "degraded": None})
    assert look() == (True, None)
    child.health = read_health({"trouble": None, "degraded": "no relay is connected"})
    assert look() == (False, "no relay is connected")
    child.health = read_health({"trouble": "stuck", "degraded": "no relay is connected"})
    assert look() == (False, "stuck")
    child.health = read_health({"degraded": "no relay is connected", "problem": "cursor too high"})
    assert look() == (False, "no relay is connected; cursor too high")


async def test_a_stopped_worker_has_no_figures_of_its_last_life() -> None:
    await trio.lowlevel.checkpoint()
    child = ChildDriver("ingester", 1, worker_policy(Settings()), never)
    child.health = read_health({"rate": 5.0, "degraded": "no relay is connected", "pending": 0})
    found = status.child_document(child)
    assert (found["state"], found["rate"], found["trouble"]) == ("stopped", None, None)
    assert found["health"]["pending"] == 0  # a stop is verified with it


async def test_a_worker_that_does_not_progress_is_started_again() -> None:
    await trio.lowlevel.checkpoint()
    child = ChildDriver("indexer", 1, worker_policy(Settings()), never)
    child._heard({"event": "status", "health": {"stalled": None, "trouble": "a while"}})
    with pytest.raises(trio.WouldBlock):
        child._receive.receive_nowait()
    reason = "no progress of applying for 301 s"
    child._heard({"event": "status", "health": {"stalled": reason}})
    assert child._receive.receive_nowait() == m.Unresponsive(reason)
