"""Batching of concurrent calls: one thread hop to a store, however many items go."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

BATCH_ITEMS = 500
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class _Call(Generic[Item, Result]):
    item: Item
    woken: trio.Event = field(default_factory=trio.Event)  # answered, or has to lead
    answer: tuple[Result] | None = None


class Coalescer(Generic[Item, Result]):
    """Batches calls: items that arrive while a call is in flight share the next call.

    No timer delays a call, so a lone call has the same latency as without the coalescer. Where a
    call is dear (a commit), each batch waits `gather_seconds` for more items.

    There is no task of its own: one waiting task leads, makes the call for all items, then wakes
    another to lead.
    """

    def __init__(
        self,
        carry_out: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        limit: int = BATCH_ITEMS,
        *,
        gather_seconds: float = 0.0,
    ) -> None:
        """`carry_out` returns a result for each item, in order; `limit` bounds items per call."""
        self._carry_out = carry_out
        self._limit = limit
        self._gather_seconds = gather_seconds
        self._calls: list[_Call[Item, Result]] = []  # not answered yet
        self._has_leader = False

    async def call(self, item: Item) -> Result:
        """Return the result of one item.

        An exception of `carry_out` is raised in the task that leads; the others try again.
        """
        call: _Call[Item, Result] = _Call(item)
        self._calls.append(call)
        leads = not self._has_leader
        try:
            if not leads:
                await call.woken.wait()
            while call.answer is None:
                leads = self._has_leader = True
                if self._gather_seconds:
                    await trio.sleep(self._gather_seconds)
                batch = self._calls[: self._limit]
                results = await self._carry_out([other.item for other in batch])
                for other, result in zip(batch, results, strict=True):
                    other.answer = (result,)
                    other.woken.set()
                # Calls cancelled meanwhile have left the list already.
                self._calls = [other for other in self._calls if other.answer is None]
            return call.answer[0]
        finally:
            if call.answer is None and call in self._calls:
                self._calls.remove(call)
            # One that was woken to lead, and cancelled before it did, passes the lead on too.
            if leads or (call.woken.is_set() and call.answer is None):
                self._has_leader = bool(self._calls)
                if self._calls:
                    self._calls[0].woken.set()
