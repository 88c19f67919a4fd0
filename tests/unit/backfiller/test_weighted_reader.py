"""No stream of repos is starved, and none is waited for."""

from collections import deque

import trio
from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.backfiller.jobs import WeightedReader

WEIGHTS = {"high": 12, "normal": 3, "low": 1}


async def take(reader: WeightedReader, streams: dict[str, deque[str]], count: int) -> list[str]:
    async def read(stream: str, wanted: int) -> list[str]:
        await trio.lowlevel.checkpoint()
        queue = streams[stream]
        return [queue.popleft() for _ in range(min(wanted, len(queue)))]

    taken = await reader.take(count, read)
    assert taken is not None
    return taken


async def test_every_full_stream_gets_its_share_in_the_long_run() -> None:
    reader = WeightedReader(WEIGHTS)
    streams = {name: deque([name] * 10_000) for name in WEIGHTS}
    taken: list[str] = []
    for count in (1, 3, 16, 40, 2) * 40:
        page = await take(reader, streams, count)
        assert len(page) == count
        taken += page
    least = {name: len(taken) * weight / 16 - 16 for name, weight in WEIGHTS.items()}
    assert all(taken.count(name) >= least[name] for name in WEIGHTS)


async def test_room_that_is_not_needed_goes_to_the_others() -> None:
    reader = WeightedReader(WEIGHTS)
    streams = {"high": deque[str](), "normal": deque(["normal"] * 4), "low": deque(["low"] * 90)}
    assert await take(reader, streams, 20) == ["normal"] * 3 + ["low"] + ["normal"] + ["low"] * 15
    assert await take(reader, streams, 5) == ["low"] * 5


@given(
    st.lists(st.integers(1, 50), max_size=30), st.lists(st.integers(0, 60), min_size=3, max_size=3)
)
def test_a_take_is_never_short_while_entries_wait(counts: list[int], sizes: list[int]) -> None:
    async def run() -> None:
        reader = WeightedReader(WEIGHTS)
        streams = {name: deque([name] * size) for name, size in zip(WEIGHTS, sizes, strict=True)}
        for count in counts:
            waiting = sum(map(len, streams.values()))
            assert len(await take(reader, streams, count)) == min(count, waiting)

    trio.run(run)
