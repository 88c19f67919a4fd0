"""Answers of the control socket: every step of a request is sent to whoever asked."""

from dataclasses import replace

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.supervisor.child import ChildDriver
from rsky_pipeline.supervisor.children import worker_policy
from rsky_pipeline.supervisor.control import ControlCommands
from rsky_pipeline.supervisor.machine import Phase
from rsky_pipeline.supervisor.protocol import ControlRequest
from rsky_pipeline.supervisor.role_settings import RoleSettings
from rsky_pipeline.supervisor.sequence import StepLog, StopRequest
from rsky_pipeline.supervisor.spawn import ChildProcess


def never(_: bool) -> ChildProcess:
    raise OSError("nothing is started here")


async def test_the_start_of_a_role_that_runs_is_answered() -> None:
    child = ChildDriver("indexer", 1, worker_policy(Settings()), never)
    child.state = replace(child.state, phase=Phase.READY)
    control = ControlCommands(
        {"indexer": [child]}, StopRequest(), StepLog(), dict, RoleSettings(Settings(), [], None)
    )
    sent: list[str] = []

    async def send(line: str) -> None:
        sent.append(line)

    assert await control.handle(ControlRequest("start", ("indexer",)), send) == {"ok": True}
    assert sent == ["indexer ready (0.0 s)"]
