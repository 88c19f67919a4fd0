"""Live events and labels take turns; history waits until there are none."""

import trio

from rsky_pipeline.indexer.batch import Batch
from rsky_pipeline.indexer.shelf import Shelf

ORDER = (("live", "labels"), ("history",))


async def taken(shelf: Shelf, count: int) -> list[str]:
    """Take some batches and return their streams."""
    found = []
    for _ in range(count):
        batch = await shelf.take()
        assert batch is not None
        found.append(batch.stream)
    return found


async def test_earlier_groups_go_first_and_streams_of_a_group_take_turns() -> None:
    shelf = Shelf(ORDER)
    async with trio.open_nursery() as nursery:
        for stream, batches in (("history", 1), ("live", 3), ("labels", 2)):

            async def offer(stream: str = stream, batches: int = batches) -> None:
                for _ in range(batches):
                    await shelf.put(Batch(stream))

            nursery.start_soon(offer)
        await trio.testing.wait_all_tasks_blocked()
        found: list[str] = []
        for _ in range(6):
            found += await taken(shelf, 1)
            await trio.testing.wait_all_tasks_blocked()
    assert found[-1] == "history"
    assert sorted(found[:4]) == ["labels", "labels", "live", "live"]
    assert found[0] != found[1]


async def test_a_reader_waits_until_its_batch_is_taken() -> None:
    shelf = Shelf(ORDER)
    await shelf.put(Batch("live"))
    with trio.move_on_after(0.01) as waiting:
        await shelf.put(Batch("live"))
    assert waiting.cancelled_caught
    assert await taken(shelf, 1) == ["live"]
    await shelf.put(Batch("live"))


async def test_what_lies_there_is_taken_after_closing() -> None:
    shelf = Shelf(ORDER)
    await shelf.put(Batch("history"))
    await shelf.close()
    assert await taken(shelf, 1) == ["history"]
    assert await shelf.take() is None
