"""The ladders of real policies end in SIGKILL and repeat no signal that could merge."""

import signal
from dataclasses import replace

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.supervisor.children import store_policy, worker_policy
from rsky_pipeline.supervisor.machine import Policy


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
