"""What the control socket's commands do."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import trio

from rsky_pipeline.configuration.topology import start_order, stop_order
from rsky_pipeline.supervisor.child import ChildDriver
from rsky_pipeline.supervisor.errors import StartFailed
from rsky_pipeline.supervisor.protocol import BadRequest, Request
from rsky_pipeline.supervisor.shutdown import StopRequest, Urgency, stop_group
from rsky_pipeline.supervisor.startup import restart_role, start_role
from rsky_pipeline.supervisor.steps import Steps

Send = Callable[[str], Awaitable[None]]


class Orders:
    """Carries out requests on the workers of one supervisor."""

    def __init__(
        self,
        workers: Mapping[str, Sequence[ChildDriver]],
        request: StopRequest,
        steps: Steps,
        document: Callable[[], dict[str, Any]],
    ) -> None:
        self._workers = workers
        self._request = request
        self._steps = steps
        self._document = document
        self._busy: set[str] = set()
        self._forced = False

    async def handle(self, request: Request, send: Send) -> dict[str, Any]:
        """Carry out a request; return the closing object. Raises BadRequest for a refusal."""
        foreign = [role for role in request.roles if role not in self._workers]
        if foreign:
            raise BadRequest(f"this supervisor does not run {', '.join(foreign)}")
        match request.command:
            case "status":
                return {"ok": True, "status": self._document()}
            case "stop":
                forced = await self._stop(request, send)
                return {"ok": True, "forced": forced}
            case "start":
                await self._start(request.roles or tuple(self._workers), send)
                return {"ok": True}
            case _:
                await self._restart(request.roles or tuple(self._workers), send)
                return {"ok": True}

    def finish(self, forced: bool) -> None:
        """Close the answers of those who wait for the whole stop."""
        self._forced = self._forced or forced
        self._steps.finish()

    async def _stop(self, request: Request, send: Send) -> bool:
        """Stop some roles or everything. When no role is left, the supervisor stops as well, unless
        it is asked to stay."""
        roles = request.roles or tuple(self._workers)
        rest = [role for role in self._workers if role not in roles]
        left = any(not worker.at_rest for role in rest for worker in self._workers[role])
        if left or request.stay:
            return await self._stop_roles(roles, request.timeout, send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._request.force_after, request.timeout)
            self._request.raise_to(Urgency.DRAIN)
            async for line in self._steps.follow():
                await send(line)
            nursery.cancel_scope.cancel()
        return self._forced

    async def _stop_roles(self, roles: Sequence[str], limit: float | None, send: Send) -> bool:
        urgency = StopRequest()
        forced = False

        async def work(steps: Steps) -> None:
            nonlocal forced
            for role in stop_order():
                if role in roles:
                    killed = await stop_group(role, self._workers[role], urgency, steps)
                    forced = forced or killed

        async with trio.open_nursery() as nursery:
            nursery.start_soon(urgency.force_after, limit)
            await _narrate(work, send)
            nursery.cancel_scope.cancel()
        self._forced = self._forced or forced
        return forced

    async def _start(self, roles: Sequence[str], send: Send) -> None:
        """Start what was stopped, producers first."""
        failure: StartFailed | None = None

        async def work(steps: Steps) -> None:
            nonlocal failure
            try:
                for role in start_order():
                    if role in roles:
                        await start_role(role, self._workers[role], steps)
            except StartFailed as error:
                failure = error

        with self._alone(roles):
            await _narrate(work, send)
        if failure is not None:
            raise BadRequest(str(failure))

    async def _restart(self, roles: Sequence[str], send: Send) -> None:
        done = True

        async def work(steps: Steps) -> None:
            nonlocal done
            for role in stop_order():
                if role in roles and done:
                    done = await restart_role(self._workers[role], steps)

        with self._alone(roles):
            await _narrate(work, send)
        if not done:
            raise BadRequest("the restart was given up")

    @contextmanager
    def _alone(self, roles: Sequence[str]) -> Iterator[None]:
        """Let nobody else start these roles meanwhile. Raises BadRequest."""
        taken = self._busy.intersection(roles)
        if taken:
            raise BadRequest(f"a restart of {', '.join(sorted(taken))} is in progress")
        if self._request.urgency:
            raise BadRequest("the pipeline is stopping")
        self._busy.update(roles)
        try:
            yield
        finally:
            self._busy.difference_update(roles)


async def _narrate(work: Callable[[Steps], Awaitable[None]], send: Send) -> None:
    """Do some work and send its steps as they are told."""
    steps = Steps()

    async def forward() -> None:
        async for line in steps.follow():
            await send(line)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(forward)
        await work(steps)
        steps.finish()
