"""The simulated relay keeps to the rules of event streams that clients rely on."""

import pytest
import trio
from trio import testing

from rsky_pipeline.atproto.frame import ErrorMessage, InfoMessage
from rsky_pipeline.demo.simulator.subscription import StreamRules
from tests.integration.simulator.kit import Served, messages, seqs, served, subscribed, until_closed

NSID = "com.atproto.sync.subscribeRepos"


async def publish(network: Served, count: int) -> list[int]:
    while count > 0:
        count -= network.network.advance(count)
    log = network.network.events.log
    return [log.seq_at(index) for index in range(log.published)]


async def test_a_cursor_replays_what_came_after_it_and_goes_on_live() -> None:
    async with served() as network:
        known = await publish(network, 300)
        async with subscribed(network.urls.relay, NSID, known[99]) as socket:
            assert seqs(await messages(socket, 200)) == known[100:300]
            known = await publish(network, 50)
            assert seqs(await messages(socket, 50)) == known[300:350]


async def test_without_a_cursor_only_new_events_come() -> None:
    async with served() as network:
        await publish(network, 100)
        async with subscribed(network.urls.relay, NSID) as socket:
            await testing.wait_all_tasks_blocked(0.05)
            known = await publish(network, 20)
            assert seqs(await messages(socket, 20)) == known[100:]


async def test_cursor_0_is_the_oldest_event() -> None:
    async with served() as network:
        known = await publish(network, 40)
        async with subscribed(network.urls.relay, NSID, 0) as socket:
            assert seqs(await messages(socket, 40)) == known


async def test_a_cursor_in_the_future_is_refused() -> None:
    async with served() as network:
        known = await publish(network, 10)
        async with subscribed(network.urls.relay, NSID, known[-1] + 1) as socket:
            (message,) = await messages(socket, 1)
            assert isinstance(message, ErrorMessage)
            assert message.error == "FutureCursor"
            assert await until_closed(socket) == []
            assert socket.closed is not None
            assert socket.closed.code == 1008


async def test_a_cursor_before_the_window_is_told_and_starts_at_the_oldest() -> None:
    async with served() as network:
        known = await publish(network, 100)
        network.network.events.log.expire(keep=30)
        async with subscribed(network.urls.relay, NSID, known[5]) as socket:
            first, *rest = await messages(socket, 31)
            assert isinstance(first, InfoMessage)
            assert first.name == "OutdatedCursor"
            assert seqs(rest) == known[70:]
        async with subscribed(network.urls.relay, NSID, 0) as socket:
            assert seqs(await messages(socket, 30)) == known[70:]


async def test_the_window_moves_with_the_stream() -> None:
    async with served(rules=StreamRules(keep_events=50)) as network:
        known = await publish(network, 200)
        async with subscribed(network.urls.relay, NSID, 0) as socket:
            assert seqs(await messages(socket, 50)) == known[150:]


async def test_a_live_subscriber_that_does_not_read_is_cut_off_with_a_reason() -> None:
    async with (
        served(rules=StreamRules(buffer_events=100)) as network,
        subscribed(network.urls.relay, NSID) as socket,
    ):
        # Enough that it cannot hide in the buffers of both sockets.
        network.network.prepare(6_000)
        await testing.wait_all_tasks_blocked(0.05)
        await network.network.publish(0, 6_000)
        while network.network.events.subscribers.too_slow == 0:
            await trio.sleep(0.01)
        last = (await until_closed(socket))[-1]
        assert isinstance(last, ErrorMessage)
        assert last.error == "ConsumerTooSlow"


async def test_a_subscriber_can_be_cut_off_and_come_back() -> None:
    async with served() as network:
        known = await publish(network, 30)
        async with subscribed(network.urls.relay, NSID, 0) as socket:
            found = seqs(await messages(socket, 10))
            await network.get(f"{network.urls.relay}/simulator/disconnect")
            found += seqs(await until_closed(socket))
        async with subscribed(network.urls.relay, NSID, found[-1]) as socket:
            found += seqs(await messages(socket, 30 - len(found)))
        assert found == known


async def test_pings_are_answered_while_events_flow() -> None:
    async with served() as network, subscribed(network.urls.relay, NSID) as socket:
        with trio.fail_after(60):
            await socket.ping(b"are you there")


async def test_a_plain_request_is_told_to_upgrade() -> None:
    async with served() as network:
        answer = await network.client.get(f"{network.urls.relay}/xrpc/{NSID}")
        assert answer.status_code == 426


async def test_the_rate_is_kept() -> None:
    async with served() as network:
        begin = trio.current_time()
        with trio.move_on_after(1.0):
            await network.network.publish(400)
        # A slow machine may publish fewer; more than the rate allows is never right.
        assert 0 < network.network.events.log.published <= 400 * (trio.current_time() - begin) + 40


async def test_stopping_publishes_whole_happenings() -> None:
    async with served() as network:
        while not _in_the_middle(network):
            network.network.advance(1)
        status = await network.get(f"{network.urls.relay}/simulator/stop")
        assert status["stopped"]
        assert not _in_the_middle(network)
        assert status["seq"] == network.world.seq


def _in_the_middle(network: Served) -> bool:
    return network.world.is_in_the_middle


async def test_a_busy_machine_is_no_end_of_publishing(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late it comes to it, something is published; nothing would be the end."""
    monkeypatch.setattr("rsky_pipeline.demo.simulator.network._TICK_SECONDS", 0.0)
    async with served() as network:
        assert network.network.advance(100) == 1
