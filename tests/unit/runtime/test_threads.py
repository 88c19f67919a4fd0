"""Calls on one connection never overlap."""

import threading
import time

import trio

from rsky_pipeline.runtime.threads import StoreThread


async def test_one_call_at_a_time() -> None:
    running = threading.Semaphore(1)
    store = StoreThread()
    results: list[int] = []

    def work(number: int) -> int:
        assert running.acquire(blocking=False), "two calls at once"
        time.sleep(0.01)
        running.release()
        return number

    async def call(number: int) -> None:
        results.append(await store.call(work, number))

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(call, number)
    assert sorted(results) == [0, 1, 2, 3, 4]


async def test_a_cancelled_call_is_waited_for() -> None:
    ended = threading.Event()

    def work() -> None:
        time.sleep(0.2)
        ended.set()

    with trio.move_on_after(0.01):
        await StoreThread().call(work)
    assert ended.is_set()
