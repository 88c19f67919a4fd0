"""Download slots: slow downloads pass theirs on, in whatever phase they are slow."""

from collections.abc import Awaitable, Callable

import trio
import trio.testing

from rsky_pipeline.repos.fetch import SLOW_RATE, SLOW_SECONDS, DownloadSlot, DownloadSlots


def holder(slots: DownloadSlots, taken: list[DownloadSlot]) -> Callable[[], Awaitable[None]]:
    async def hold() -> None:
        async with slots.take() as slot:
            taken.append(slot)
            await trio.sleep_forever()

    return hold


async def test_a_download_that_never_gets_an_answer_passes_its_slot_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slots, taken = DownloadSlots(1, 1), list[DownloadSlot]()
    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        nursery.start_soon(holder(slots, taken))
        nursery.start_soon(holder(slots, taken))
        await trio.sleep(SLOW_SECONDS + 2)
        assert len(taken) == 2  # while no byte has come
        assert taken[1].began - began > SLOW_SECONDS  # its clock runs from when it has the slot
        assert (slots.busy, slots.aside) == (2, 1)
        nursery.cancel_scope.cancel()
    assert (slots.busy, slots.aside) == (0, 0)


async def test_one_that_is_fast_or_not_needed_keeps_its_slot(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slots, taken = DownloadSlots(1, 1), list[DownloadSlot]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(holder(slots, taken))
        await trio.sleep(SLOW_SECONDS * 9)
        assert not slots.aside  # nobody waits
        taken[0].received = int(SLOW_RATE * SLOW_SECONDS * 100)
        nursery.start_soon(holder(slots, taken))
        await trio.sleep(SLOW_SECONDS * 9)
        assert len(taken) == 1
        nursery.cancel_scope.cancel()


async def test_no_more_step_aside_than_may(autojump_clock: trio.testing.MockClock) -> None:
    slots, taken = DownloadSlots(2, 1), list[DownloadSlot]()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(holder(slots, taken))
        await trio.sleep(SLOW_SECONDS * 9)
        assert (len(taken), slots.busy, slots.aside) == (3, 3, 1)
        nursery.cancel_scope.cancel()
    assert (slots.busy, slots.aside) == (0, 0)
