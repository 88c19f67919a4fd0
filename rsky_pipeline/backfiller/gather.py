"""Calls that many tasks make at once, carried out together."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class _Asked(Generic[Item, Result]):
    item: Item
    woken: trio.Event = field(default_factory=trio.Event)  # answered, or it has to lead
    answer: tuple[Result] | None = None


class Gather(Generic[Item, Result]):
    """What comes while a call is under way goes into the next one: nobody waits for company.

    One of the tasks that wait leads: it makes the call for all, then another one leads.
    """

    def __init__(
        self, carry_out: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], most: int = 500
    ) -> None:
        """`carry_out` returns a result for each item, in order; `most` bounds the items."""
        self._carry_out = carry_out
        self._most = most
        self._asked: list[_Asked[Item, Result]] = []  # not answered yet
        self._has_leader = False

    async def call(self, item: Item) -> Result:
        """Have an item carried out with others; raises what `carry_out` raises."""
        asked: _Asked[Item, Result] = _Asked(item)
        self._asked.append(asked)
        if self._has_leader:
            try:
                await asked.woken.wait()
            except trio.Cancelled:
                self._give_up(asked)
                raise
        if asked.answer is None:
            self._has_leader = True
            try:
                while asked.answer is None:
                    await self._next()
            finally:
                self._give_up(asked, leading=True)
        return asked.answer[0]

    async def _next(self) -> None:
        batch = self._asked[: self._most]
        results = await self._carry_out([asked.item for asked in batch])
        for asked, result in zip(batch, results, strict=True):
            asked.answer = (result,)
            asked.woken.set()
        # What was given up meanwhile is gone from the list already.
        self._asked = [asked for asked in self._asked if asked.answer is None]

    def _give_up(self, asked: _Asked[Item, Result], *, leading: bool = False) -> None:
        """Leave, and let another lead if that was our part."""
        if asked in self._asked:
            self._asked.remove(asked)
        if leading or (asked.woken.is_set() and asked.answer is None):
            self._has_leader = bool(self._asked)
            if self._asked:
                self._asked[0].woken.set()
