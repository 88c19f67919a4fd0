"""Stopping in order: each group of children drained and gone before the next is told."""

from collections.abc import Sequence
from enum import IntEnum

import trio

from rsky_pipeline.supervisor import messages as m
from rsky_pipeline.supervisor.child import ChildDriver
from rsky_pipeline.supervisor.machine import ALIVE, Child, Phase
from rsky_pipeline.supervisor.steps import Steps

KILL_AFTER_HURRY_SECONDS = 10.0


class Urgency(IntEnum):
    """How much patience a stop has; it only ever grows."""

    NONE = 0
    DRAIN = 1
    HURRY = 2
    KILL = 3


class StopRequest:
    """Whether, and how urgently, the supervisor is asked to stop."""

    def __init__(self) -> None:
        self.urgency = Urgency.NONE
        self._changed = trio.Event()

    def raise_to(self, urgency: Urgency) -> None:
        """Ask for at least this urgency."""
        if urgency > self.urgency:
            self.urgency = urgency
            self._changed.set()
            self._changed = trio.Event()

    async def force_after(self, seconds: float | None) -> None:
        """Grow urgent when a time limit has passed, and more so a little later."""
        if seconds is None:
            return
        await trio.sleep(seconds)
        self.raise_to(Urgency.HURRY)
        await trio.sleep(KILL_AFTER_HURRY_SECONDS)
        self.raise_to(Urgency.KILL)

    async def at_least(self, urgency: Urgency) -> None:
        """Wait until the request is that urgent."""
        while self.urgency < urgency:
            await self._changed.wait()


async def stop_group(
    name: str, children: Sequence[ChildDriver], request: StopRequest, steps: Steps
) -> bool:
    """Stop children of one role together, telling the step when all are gone.

    Returns whether one had to be killed.
    """
    began = trio.current_time()
    before = [child.state for child in children]
    running = [child for child in children if not child.at_rest]
    for child in running:
        child.tell(m.Stop())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_press, running, request)
        for child in running:
            await child.until(lambda child: child.at_rest)
        nursery.cancel_scope.cancel()
    if not any(state.phase in ALIVE for state in before):
        steps.tell(f"{name} was not running")
        return False
    elapsed = trio.current_time() - began
    killed = any(child.state.kills > old.kills for child, old in zip(children, before, strict=True))
    steps.tell(_describe(name, running, elapsed, killed), bad=killed)
    return killed


async def _press(children: Sequence[ChildDriver], request: StopRequest) -> None:
    await request.at_least(Urgency.HURRY)
    for child in children:
        child.tell(m.Hurry())
    await request.at_least(Urgency.KILL)
    for child in children:
        child.tell(m.Kill())


def _describe(name: str, children: Sequence[ChildDriver], elapsed: float, killed: bool) -> str:
    who = name if len(children) == 1 else f"{name} ({len(children)} workers)"
    figures = [f"{elapsed:.1f} s"]
    pending = [held for child in children if (held := child.health.pending) is not None]
    if pending:
        figures.append(f"{sum(pending)} pending")
    if killed:
        return f"{who} did not drain in time and was killed ({', '.join(figures)})"
    failures = [problem for child in children if (problem := _problem(child.state))]
    if failures:
        return f"{who} stopped ({', '.join(figures)}), {'; '.join(failures)}"
    if children[0].instance is None:
        return f"{who} stopped ({', '.join(figures)})"
    return f"{who} drained and stopped ({', '.join(figures)})"


def _problem(state: Child) -> str | None:
    how = state.last_exit
    if state.phase is Phase.FAILED or how is None or how.code == 0:
        return None
    return how.describe()
