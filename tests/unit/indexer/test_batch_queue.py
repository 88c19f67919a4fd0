"""Live events and labels take turns; history waits, but is not forgotten."""

import trio

from rsky_pipeline.indexer.core.batch import EntryBatch
from rsky_pipeline.indexer.scheduling import PATIENCE_SECONDS, BatchQueue, FairScheduler


def shelf(guaranteed: float = 0.1) -> tuple[BatchQueue, FairScheduler]:
    shares = FairScheduler(guaranteed, trio.current_time)
    return BatchQueue(("live", "labels"), "history", shares), shares


async def taken(shelf: BatchQueue, count: int) -> list[str]:
    """Take some batches and return their streams."""
    found = []
    for _ in range(count):
        batch = await shelf.take()
        assert batch is not None
        found.append(batch.stream)
    return found


async def test_live_goes_first_and_its_streams_take_turns() -> None:
    own, _ = shelf()
    async with trio.open_nursery() as nursery:
        for stream, batches in (("history", 1), ("live", 3), ("labels", 2)):

            async def offer(stream: str = stream, batches: int = batches) -> None:
                for _ in range(batches):
                    await own.put(EntryBatch(stream))

            nursery.start_soon(offer)
        await trio.testing.wait_all_tasks_blocked()
        found: list[str] = []
        for _ in range(6):
            found += await taken(own, 1)
            await trio.testing.wait_all_tasks_blocked()
    assert found[-1] == "history"
    assert sorted(found[:4]) == ["labels", "labels", "live", "live"]
    assert found[0] != found[1]


async def test_history_gets_its_share_while_live_lags(
    autojump_clock: trio.testing.MockClock,
) -> None:
    own, shares = shelf()
    found: list[str] = []
    async with trio.open_nursery() as nursery:
        for stream in ("live", "history"):

            async def offer(stream: str = stream) -> None:
                while True:
                    await own.put(EntryBatch(stream, more=True))

            nursery.start_soon(offer)
        for _ in range(200):
            await trio.testing.wait_all_tasks_blocked()
            batch = await own.take()
            assert batch is not None
            found.append(batch.stream)
            shares.worked(1.0, history=batch.stream == "history", behind=own.behind)
        nursery.cancel_scope.cancel()
    assert 19 <= found.count("history") <= 21


async def test_history_does_not_slip_in_while_the_next_live_batch_is_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    own, shares = shelf()
    await own.put(EntryBatch("live", more=True))
    shares.worked(1.0, history=True, behind=True)  # it has had enough
    await own.put(EntryBatch("history"))
    assert await taken(own, 1) == ["live"]
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            await trio.sleep(PATIENCE_SECONDS / 2)
            await own.put(EntryBatch("live"))

        nursery.start_soon(read)
        assert await taken(own, 2) == ["live", "history"]


async def test_a_reader_that_does_not_come_back_holds_nobody_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    own, shares = shelf()
    await own.put(EntryBatch("live", more=True))
    shares.worked(1.0, history=True, behind=True)
    await own.put(EntryBatch("history"))
    assert await taken(own, 2) == ["live", "history"]
    assert own.behind
    await own.caught_up("live")
    assert not own.behind


async def test_a_reader_waits_until_its_batch_is_taken() -> None:
    own, _ = shelf()
    await own.put(EntryBatch("live"))
    with trio.move_on_after(0.01) as waiting:
        await own.put(EntryBatch("live"))
    assert waiting.cancelled_caught
    assert await taken(own, 1) == ["live"]
    await own.put(EntryBatch("live"))


async def test_what_lies_there_is_taken_after_closing() -> None:
    own, _ = shelf()
    await own.put(EntryBatch("history"))
    await own.close()
    assert await taken(own, 1) == ["history"]
    assert await own.take() is None
