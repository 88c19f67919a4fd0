"""The ladders of real policies end in SIGKILL and repeat no signal that could merge."""

import signal
from dataclasses import replace

import trio

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime.errors import UnavailableError
from rsky_pipeline.supervisor.child import ChildDriver
from rsky_pipeline.supervisor.children import store_policy, worker_policy
from rsky_pipeline.supervisor.machine import Phase, Policy, Start
from rsky_pipeline.supervisor.spawn import ChildProcess


def signals(policy: Policy) -> list[int]:
    return [stop_step.signal for stop_step in policy.escalation]


def test_workers_drain_then_escalate_then_show_their_stacks() -> None:
    policy = worker_policy(replace(Settings(), stop_timeout_seconds=7, ready_timeout_seconds=9))
    assert signals(policy) == [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL]
    assert policy.escalation[0].wait == 7
    assert policy.ready_timeout == 9
    assert policy.final_codes == {77, 78}
    assert policy.dependency_codes == {69}


def test_stores_stop_in_their_own_ways() -> None:
    valkey = store_policy(signal.SIGTERM, Settings())
    postgres = store_policy(signal.SIGINT, Settings())
    assert signals(valkey) == [signal.SIGTERM, signal.SIGKILL]
    assert signals(postgres) == [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL]
    # Everything waits for a store, so it is tried again soon and given up late.
    assert valkey.cap < worker_policy(Settings()).cap
    assert valkey.crash_budget > worker_policy(Settings()).crash_budget


async def test_a_worker_that_cannot_be_started_for_want_of_room_is_tried_again() -> None:
    """Its supervisor goes on, whatever kept the lock from being made."""

    def launch(_: bool) -> ChildProcess:
        raise UnavailableError("cannot write the lock file: No space left on device")

    driver = ChildDriver("indexer", 1, worker_policy(Settings()), launch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run)
        driver.send(Start())
        await driver.until(lambda child: child.state.phase is Phase.BACKOFF)
        assert driver.state.timer is not None
        assert "No space left" in str(driver.state.last_exit)
        nursery.cancel_scope.cancel()
