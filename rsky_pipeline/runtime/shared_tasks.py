"""Work that outlives whoever asked for it: one task for each key, awaited by any number of others.

A look-up of an account, for example, is asked for by a connection to a relay. If it ended with the
connection, connections that are shorter than a look-up would never get anywhere.
"""

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar, cast

import trio

Result = TypeVar("Result")


class _Running(Generic[Result]):
    def __init__(self) -> None:
        self.done = trio.Event()
        self.result: Result | None = None
        self.error: Exception | None = None


class SharedTasks(Generic[Result]):
    """Runs work in a nursery of its own; without one, in its first caller."""

    def __init__(self, nursery: trio.Nursery | None = None) -> None:
        self._nursery = nursery
        self._running: dict[Hashable, _Running[Result]] = {}

    async def call(self, key: Hashable, work: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result of the work that runs for a key, or start it; raises its exception.

        A caller that is cancelled leaves the work running.
        """
        if self._nursery is None:
            return await work()
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = _Running()
            self._nursery.start_soon(self._run, key, running, work)
        await running.done.wait()
        if running.error is not None:
            raise running.error
        return cast(Result, running.result)

    async def _run(
        self, key: Hashable, running: _Running[Result], work: Callable[[], Awaitable[Result]]
    ) -> None:
        try:
            running.result = await work()
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            running.error = error
        finally:
            del self._running[key]
            running.done.set()
