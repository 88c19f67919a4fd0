"""Calls of many tasks go together, and whoever leaves takes nobody along."""

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from rsky_pipeline.runtime.coalescer import Coalescer


class Doubler:
    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = trio.Semaphore(0)

    async def carry_out(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.go.acquire()
        if -1 in items:
            raise ValueError("cannot be doubled")
        return [2 * item for item in items]


async def test_what_comes_during_a_call_goes_into_the_next() -> None:
    doubler, answers = Doubler(), dict[int, int]()
    coalescer = Coalescer(doubler.carry_out, limit=3)

    async def ask(item: int) -> None:
        answers[item] = await coalescer.call(item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 0)
        await trio.testing.wait_all_tasks_blocked()
        for item in (1, 2, 3, 4):
            nursery.start_soon(ask, item)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            doubler.go.release()
    assert answers == {item: 2 * item for item in range(5)}
    assert [len(batch) for batch in doubler.batches] == [1, 3, 1]
    doubler.go.release()
    assert await coalescer.call(7) == 14


async def test_a_task_that_is_cancelled_holds_up_nobody() -> None:
    doubler = Doubler()
    coalescer, answers = Coalescer(doubler.carry_out), list[int]()

    async def ask(item: int) -> None:
        answers.append(await coalescer.call(item))

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.05):  # the leader goes in the middle of its call
            nursery.start_soon(trio.sleep, 0)
            await coalescer.call(0)
        first = trio.CancelScope()

        async def cancelled() -> None:
            with first:
                await coalescer.call(1)

        nursery.start_soon(ask, 2)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(cancelled)
        nursery.start_soon(ask, 3)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()  # one that waits goes
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            doubler.go.release()
    assert sorted(answers) == [4, 6]
    assert doubler.batches[-1] == [3]


async def test_a_failure_reaches_whoever_led_and_the_others_try_again() -> None:
    doubler = Doubler()
    coalescer, answers = Coalescer(doubler.carry_out, limit=1), list[int]()

    async def ask(item: int) -> None:
        answers.append(await coalescer.call(item))

    async with trio.open_nursery() as nursery:

        async def failing() -> None:
            with pytest.raises(ValueError, match="doubled"):
                await coalescer.call(-1)

        nursery.start_soon(failing)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, 5)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            doubler.go.release()
    assert answers == [10]
