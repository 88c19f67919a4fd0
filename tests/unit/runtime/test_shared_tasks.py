"""Work that several wait for, and that none of them can end."""

import pytest
import trio
import trio.testing

from rsky_pipeline.runtime.shared_tasks import SharedTasks


async def test_one_run_serves_all_who_wait_and_survives_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    runs = list[int]()

    async def work() -> int:
        runs.append(1)
        await trio.sleep(5.0)
        return 42

    async with trio.open_nursery() as nursery:
        shared: SharedTasks[int] = SharedTasks(nursery)
        with trio.move_on_after(1.0):
            await shared.call("a", work)
        assert await shared.call("a", work) == 42
        assert len(runs) == 1
        assert await shared.call("a", work) == 42
        assert len(runs) == 2


async def test_all_who_wait_get_the_error(autojump_clock: trio.testing.MockClock) -> None:
    async def fail() -> int:
        await trio.sleep(1.0)
        raise ValueError("no")

    errors = list[str]()
    async with trio.open_nursery() as nursery:
        shared: SharedTasks[int] = SharedTasks(nursery)

        async def wait() -> None:
            with pytest.raises(ValueError, match="no") as error:
                await shared.call("a", fail)
            errors.append(str(error.value))

        async with trio.open_nursery() as waiting:
            for _ in range(3):
                waiting.start_soon(wait)
    assert errors == ["no"] * 3


async def test_without_a_nursery_the_work_is_its_callers() -> None:
    async def work() -> int:
        return 1

    assert await SharedTasks[int]().call("a", work) == 1
