"""Nothing is lost and the cursor is never ahead, whatever Redis does."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry

from rsky_pipeline.embedded import valkey
from rsky_pipeline.embedded.program import StoreProgram
from rsky_pipeline.ingester import role
from rsky_pipeline.ingester.frames import PendingFrame
from rsky_pipeline.ingester.writer import BatchRule, SourceCursor, Writer
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.names import CURSOR_POSITIONS
from tests.integration.ingester.relay import Relay, like, running
from tests.integration.ingester.test_live import cursor, likes, set_value, total, written
from tests.integration.ingester.worker import entries, eventually, ingesting, value
from tests.stores import (
    redis_client,
    scratch_directory,
    scratch_settings,
    wait_until_it_answers,
)


class Killable:
    """A Valkey that can be killed and started again on its files."""

    def __init__(self, program: StoreProgram) -> None:
        self._program = program
        self._process: Any = None
        self.url = program.url

    def start(self) -> None:
        self._process = self._program.start()
        wait_until_it_answers(self._program, self._process)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)


@pytest.fixture
def killable() -> Iterator[Killable]:
    with scratch_directory() as folder:
        store = Killable(valkey.prepare(scratch_settings(folder)))
        store.start()
        yield store
        store.kill()


def take(url: str, count: int) -> list[int]:
    """Remove entries from the live stream, as a consumer that has applied them."""
    with redis_client(url) as client:
        found: Any = client.xrange("firehose_live", count=count)
        for entry_id, _ in found:
            client.xdel("firehose_live", entry_id)
    return [json.loads(fields[b"event"])["seq"] for _, fields in found]


KEY = "firehose_live:cursor:relay.test"


@asynccontextmanager
async def writing(url: str) -> AsyncIterator[SourceCursor]:
    """Run a writer of one event a batch, whose cursor is loaded; it is closed at the end."""
    link = Link(lambda: connect(url, name="test"), purpose="test")
    writer = Writer(link, {}, BatchRule(max_events=1), IngesterMetrics(CollectorRegistry()))
    followed = writer.cursor(KEY, lambda part, lengths: None)
    with closing(link):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run, trio.Event())
            await followed.load()
            yield followed
            writer.close()


def frames(*seqs: int) -> list[PendingFrame]:
    return [
        PendingFrame(seq, None, [Entry("firehose_live", b"event", b'{"seq":%d}' % seq)], 9)
        for seq in seqs
    ]


async def test_after_a_lost_cursor_nothing_is_written_until_it_is_loaded_again(
    clean_redis: str,
) -> None:
    """Frames that were read already follow on what is lost; the host sends them again."""
    async with writing(clean_redis) as followed:
        followed.put(frames(4, 5))
        await followed.writer.flush()
        set_value(clean_redis, KEY, "3")
        followed.put(frames(6, 7, 8))
        await followed.moved.wait()
        followed.put(frames(9))
        await followed.writer.flush()
        assert written(clean_redis) == [4, 5]
        await followed.load()
        assert followed.stored == 3
        followed.put(frames(4, 5))
        await followed.writer.flush()
    assert written(clean_redis) == [4, 5, 4, 5]
    assert value(clean_redis, KEY) == "5"


@pytest.mark.parametrize(("note", "expected"), [('{"reset": true}', None), ("{}", 5)])
async def test_the_last_known_cursor_is_forgotten_only_where_an_operator_reset_it(
    clean_redis: str, note: str, expected: int | None
) -> None:
    async with writing(clean_redis) as followed:
        followed.put(frames(5))
        await followed.writer.flush()
        with redis_client(clean_redis) as client:
            client.delete(KEY)
            client.hset(CURSOR_POSITIONS, KEY, note)
        await followed.load()
        assert (followed.stored, followed.last_known) == (None, expected)


async def test_a_full_stream_slows_reading_and_loses_nothing(clean_redis: str) -> None:
    relay = Relay(likes(*range(1, 3_001)))
    settings = {"live_high_water_mark": 500, "ingester_batch_size": 50}
    async with running(relay), ingesting(clean_redis, relay.url, **settings) as ingester:
        await eventually(lambda: total(ingester, "store_retries", action="full") > 0)
        assert len(written(clean_redis)) < 500 + 50
        assert cursor(clean_redis, relay) == str(written(clean_redis)[-1])
        await eventually(lambda: ingester.health["held_up"])
        taken: list[int] = []
        while len(taken) < 3_000:
            stored = written(clean_redis)
            assert len(stored) < 500 + 50
            if stored:
                position = cursor(clean_redis, relay)
                assert position is not None
                assert int(position) >= stored[-1]
            taken += take(clean_redis, 200)
            await trio.sleep(0.02)
    assert taken == list(range(1, 3_001))


@pytest.mark.slow
async def test_a_long_pause_closes_the_socket_and_resumes_from_the_cursor(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(role, "MAX_EVENTS", 400)
    relay = Relay(likes(*range(1, 5_001)))
    settings = {"live_high_water_mark": 300, "ingester_batch_size": 100}
    async with running(relay), ingesting(clean_redis, relay.url, **settings) as ingester:
        await eventually(lambda: ingester.metric("ingester_backpressure_active") == 1)
        await eventually(lambda: total(ingester, "disconnects", reason="pressure") == 1)
        assert ingester.metric("ingester_websocket_connections") == 0
        assert ingester.metric("ingester_backpressure_active") == 1
        held = ingester.metric("ingester_events_in_memory")
        assert 0 < held < 400 + 300
        taken: list[int] = []
        while len(taken) < 5_000:
            taken += take(clean_redis, 500)
            await trio.sleep(0.01)
        await eventually(lambda: ingester.metric("ingester_backpressure_active") == 0)
        assert total(ingester, "backpressure_seconds") > 5
    assert taken == list(range(1, 5_001))
    assert len(relay.cursors) >= 2


async def test_stopping_with_a_full_stream_ends_soon_and_repeats_nothing(
    clean_redis: str,
) -> None:
    relay = Relay(likes(*range(1, 1_001)))
    settings = {"live_high_water_mark": 100, "ingester_batch_size": 50}
    async with running(relay):
        async with ingesting(clean_redis, relay.url, **settings) as ingester:
            await eventually(lambda: total(ingester, "store_retries", action="full") > 0)
        taken = take(clean_redis, 2_000)
        async with ingesting(clean_redis, relay.url):
            await eventually(lambda: cursor(clean_redis, relay) == "1000")
    assert taken + written(clean_redis) == list(range(1, 1_001))


async def test_killing_the_store_loses_and_doubles_nothing(killable: Killable) -> None:
    relay = Relay()
    async with trio.open_nursery() as nursery:

        async def publish() -> None:
            for first in range(1, 4_001, 20):
                relay.add(*likes(*range(first, first + 20)))
                await trio.sleep(0.01)

        async with running(relay), ingesting(killable.url, relay.url) as ingester:
            nursery.start_soon(publish)
            for stop_at in (500, 1_500):
                await eventually(lambda at=stop_at: len(relay.frames) > at)  # type: ignore[misc]
                killable.kill()
                await trio.sleep(0.3)
                killable.start()
            await eventually(lambda: cursor(killable.url, relay) == "4000", 60)
            assert total(ingester, "store_retries", action="unavailable") > 0
            assert total(ingester, "error_reasons", reason="store_unavailable") > 0
        assert written(killable.url) == list(range(1, 4_001))


async def test_a_store_that_is_down_at_first_is_waited_for(killable: Killable) -> None:
    relay = Relay(likes(1, 2))
    killable.kill()
    async with running(relay), ingesting(killable.url, relay.url) as ingester:
        await trio.sleep(0.5)
        assert not ingester.ready.is_set()
        killable.start()
        await ingester.ready.wait()
        await eventually(lambda: cursor(killable.url, relay) == "2")


async def test_a_store_without_memory_is_waited_for(clean_redis: str) -> None:
    relay = Relay(likes(*range(1, 6)))
    with redis_client(clean_redis) as client:
        client.config_set("maxmemory", "1")  # bytes: full, whatever the server
    try:
        async with running(relay), ingesting(clean_redis, relay.url) as ingester:
            await eventually(lambda: total(ingester, "store_retries", action="rejected") > 0)
            assert total(ingester, "error_reasons", reason="store_rejected") > 0
            with redis_client(clean_redis) as client:
                client.config_set("maxmemory", "0")
            await eventually(lambda: cursor(clean_redis, relay) == "5")
    finally:
        with redis_client(clean_redis) as client:
            client.config_set("maxmemory", "0")
    assert written(clean_redis) == [1, 2, 3, 4, 5]


async def test_a_store_that_lost_its_newest_data_is_filled_again(clean_redis: str) -> None:
    relay = Relay(likes(*range(1, 11)))
    async with running(relay), ingesting(clean_redis, relay.url) as ingester:
        await eventually(lambda: cursor(clean_redis, relay) == "10")
        with redis_client(clean_redis) as client:
            found: Any = client.xrange("firehose_live")
            client.xdel("firehose_live", *[entry_id for entry_id, _ in found[6:]])
            client.delete(*client.keys("rsky_pipeline:repo:*"))
        set_value(clean_redis, f"firehose_live:cursor:127.0.0.1:{relay.port}", "6")
        relay.add(*likes(11))
        await eventually(lambda: cursor(clean_redis, relay) == "11")
        assert total(ingester, "disconnects", reason="cursor_moved") == 1
        assert total(ingester, "error_reasons", reason="cursor_moved") == 1
    assert relay.cursors == [0, 6]
    assert written(clean_redis) == list(range(1, 12))


async def test_a_store_that_lost_everything_is_filled_from_where_it_can(
    clean_redis: str,
) -> None:
    relay = Relay(likes(1, 2, 3))
    async with running(relay), ingesting(clean_redis, relay.url, initial_cursor="live") as it:
        await it.ready.wait()
        relay.add(*likes(4, 5))
        await eventually(lambda: cursor(clean_redis, relay) == "5")
        with redis_client(clean_redis) as client:
            client.flushall()
        relay.add(*likes(6, 7))
        await eventually(lambda: cursor(clean_redis, relay) == "7")
    assert relay.cursors == [None, 5]
    assert written(clean_redis) == [6, 7]


async def test_a_resync_does_not_wait_behind_the_listing(clean_redis: str) -> None:
    relay = Relay([*likes(1), (2, like(2, tooBig=True))])
    with redis_client(clean_redis) as client:
        for number in range(10):
            client.xadd("repo_backfill", {"repo": json.dumps({"did": f"did:plc:{number}"})})
    settings = {"repo_high_water_mark": 10}
    async with running(relay), ingesting(clean_redis, relay.url, **settings) as ingester:
        await eventually(lambda: cursor(clean_redis, relay) == "2")
        assert total(ingester, "resyncs", reason="too_big") == 1
    assert len(entries(clean_redis, "repo_backfill")) == 10
    assert len(entries(clean_redis, "repo_backfill_high")) == 1
