"""Subscriptions over real sockets on loopback, to servers of every kind of badness."""

import base64
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio_websocket
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest

from rsky_pipeline.configuration.endpoints import Endpoint
from rsky_pipeline.network.frame_socket import MAX_MESSAGE, RECEIVE_BUFFER, FrameSocket
from rsky_pipeline.network.subscription import (
    DisconnectedError,
    DisconnectReason,
    Subscription,
    Timeouts,
    subscribe,
)

NSID = "com.atproto.sync.subscribeRepos"
QUICK = Timeouts(connect=2.0, close=0.3, idle=0.5, ping_every=0.2, pong_within=1.0)
Serve = Callable[[WebSocketConnection], Awaitable[None]]


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[Endpoint]:
    async def handle(request: WebSocketRequest) -> None:
        socket = await request.accept()
        with suppress(ConnectionClosed):
            await serve(socket)

    async with handling(handle) as endpoint:
        yield endpoint


@asynccontextmanager
async def handling(
    handle: Callable[[WebSocketRequest], Awaitable[None]],
) -> AsyncIterator[Endpoint]:
    async with trio.open_nursery() as nursery:
        start = partial(
            trio_websocket.serve_websocket, handle, "127.0.0.1", 0, None, disconnect_timeout=0.2
        )
        started: Any = await nursery.start(start)
        yield Endpoint(False, "127.0.0.1", started.port)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def raw_server(
    serve: Callable[[trio.SocketStream], Awaitable[None]],
) -> AsyncIterator[Endpoint]:
    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await serve(stream)

    async with trio.open_nursery() as nursery:
        listeners: Any = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield Endpoint(False, "127.0.0.1", listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


async def stay(_: object) -> None:
    await trio.sleep_forever()


async def receive_all(subscription: Subscription) -> tuple[list[bytes], DisconnectedError]:
    messages: list[bytes] = []
    try:
        while True:
            messages += await subscription.receive()
    except DisconnectedError as error:
        return messages, error


async def until_disconnected(endpoint: Endpoint, timeouts: Timeouts = QUICK) -> DisconnectedError:
    try:
        async with subscribe(endpoint, NSID, None, timeouts=timeouts) as subscription:
            _, ended = await receive_all(subscription)
            return ended
    except DisconnectedError as error:
        return error


def test_the_parts_of_the_library_that_are_replaced_are_still_there() -> None:
    base = trio_websocket.WebSocketConnection
    for name in (
        "_reader_task", "_handle_message_event", "_handle_reject_connection_event",
        "_handle_close_connection_event",
    ):  # fmt: skip
        assert callable(getattr(base, name)), name
    assert FrameSocket._handle_message_event is not base._handle_message_event


async def test_messages_come_in_order_and_all_before_the_end() -> None:
    sent = [bytes([number % 256]) * number for number in range(3_000)]

    async def serve(socket: WebSocketConnection) -> None:
        for message in sent:
            await socket.send_message(message)
        await socket.aclose(1001, "restarting")

    async with (
        server(serve) as endpoint,
        subscribe(endpoint, NSID, None, timeouts=QUICK) as subscription,
    ):
        messages, ended = await receive_all(subscription)
    assert messages == sent
    assert ended.reason is DisconnectReason.CLOSED
    assert "1001" in ended.detail
    assert "restarting" in ended.detail


async def test_the_request_names_the_stream_the_cursor_and_us() -> None:
    seen: list[tuple[str, dict[bytes, bytes]]] = []

    async def handle(request: WebSocketRequest) -> None:
        seen.append((request.path, dict(request.headers)))
        await (await request.accept()).aclose()

    async with handling(handle) as endpoint:
        for cursor in (None, 0, 31_527_015_322):
            with pytest.raises(DisconnectedError):
                async with subscribe(endpoint, NSID, cursor, timeouts=QUICK) as subscription:
                    await subscription.receive()
    paths = [path for path, _ in seen]
    assert paths == [f"/xrpc/{NSID}{query}" for query in ("", "?cursor=0", "?cursor=31527015322")]
    assert seen[0][1][b"user-agent"].startswith(b"rsky-pipeline/")


async def test_a_message_at_the_limit_is_taken_and_one_above_is_skipped() -> None:
    async def serve(socket: WebSocketConnection) -> None:
        for size in (MAX_MESSAGE, MAX_MESSAGE + 1, 3):
            await socket.send_message(bytes(size))
        await trio.sleep_forever()

    async with (
        server(serve) as endpoint,
        subscribe(endpoint, NSID, None, timeouts=Timeouts(close=0.3)) as subscription,
    ):
        sizes: list[int] = []
        while len(sizes) < 2:
            sizes += [len(message) for message in await subscription.receive()]
        assert sizes == [MAX_MESSAGE, 3]
        assert subscription.oversize_messages == 1


async def test_texts_are_counted_and_ignored() -> None:
    async def serve(socket: WebSocketConnection) -> None:
        for message in ("hello", b"frame", "x" * 100_000, b"frame"):
            await socket.send_message(message)
        await trio.sleep_forever()

    async with (
        server(serve) as endpoint,
        subscribe(endpoint, NSID, None, timeouts=QUICK) as subscription,
    ):
        messages, ended = await receive_all(subscription)
        assert messages == [b"frame", b"frame"]
        assert subscription.text_messages == 2
        assert ended.reason is DisconnectReason.IDLE


async def test_memory_for_unread_messages_is_bounded_and_nothing_is_lost() -> None:
    sent = 0

    async def serve(socket: WebSocketConnection) -> None:
        nonlocal sent
        for number in range(400):
            await socket.send_message(number.to_bytes(4, "big") * 25_000)
            sent += 1
        await trio.sleep_forever()

    timeouts = Timeouts(close=0.3, max_queued_bytes=500_000, ping_every=0.05, pong_within=0.5)
    async with (
        server(serve) as endpoint,
        subscribe(endpoint, NSID, None, timeouts=timeouts) as subscription,
    ):
        await trio.sleep(1.2)
        assert sent < 200  # what both sockets and our queue can hold
        assert sum(map(len, subscription._socket._queue)) < 700_000
        numbers: list[int] = []
        while len(numbers) < 400:
            numbers += [int.from_bytes(m[:4], "big") for m in await subscription.receive()]
    # Pings went unanswered while we did not read, which said nothing about the peer.
    assert numbers == list(range(400))


async def test_a_peer_that_answers_pings_may_be_silent() -> None:
    async def serve(socket: WebSocketConnection) -> None:
        await trio.sleep(1.2)
        await socket.send_message(b"at last")
        await trio.sleep_forever()

    timeouts = Timeouts(close=0.3, idle=None, ping_every=0.05, pong_within=10.0)
    async with (
        server(serve) as endpoint,
        subscribe(endpoint, NSID, None, timeouts=timeouts) as subscription,
    ):
        assert await subscription.receive() == [b"at last"]


async def test_a_peer_that_answers_no_pings_is_dead() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await accept_by_hand(stream)
        await trio.sleep_forever()

    timeouts = Timeouts(close=0.3, idle=None, ping_every=0.05, pong_within=0.1)
    async with raw_server(serve) as endpoint:
        ended = await until_disconnected(endpoint, timeouts)
    assert ended.reason is DisconnectReason.PING_TIMEOUT


async def test_a_peer_that_sends_messages_is_alive_without_pongs() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await accept_by_hand(stream)
        for _ in range(60):
            await stream.send_all(b"\x82\x01x")
            await trio.sleep(0.02)
        await trio.sleep_forever()

    timeouts = Timeouts(close=0.3, idle=None, ping_every=0.05, pong_within=0.4)
    messages: list[bytes] = []
    async with (
        raw_server(serve) as endpoint,
        subscribe(endpoint, NSID, None, timeouts=timeouts) as subscription,
    ):
        while len(messages) < 60:
            messages += await subscription.receive()
    assert messages == [b"x"] * 60


async def accept_by_hand(stream: trio.SocketStream) -> None:
    from rsky_pipeline.demo.simulator.http import accept_token

    request = await stream.receive_some(65_536)
    lines = dict(line.split(b": ", 1) for line in bytes(request).split(b"\r\n")[1:] if line)
    token = accept_token({k.lower(): v for k, v in lines.items()}[b"sec-websocket-key"])
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + token + b"\r\n\r\n"
    )


def accepted(request: bytes) -> bytes:
    """Return the answer of a server to a request for a WebSocket."""
    found = re.search(rb"(?i)sec-websocket-key: *(\S+)", request)
    assert found is not None
    digest = hashlib.sha1(found[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )


ONE = b"\x82\x03one"
MASKED = b"\x82\x83abcd" + bytes(a ^ b for a, b in zip(b"two", b"abc", strict=True))


@pytest.mark.parametrize(
    ("breach", "reason"),
    [
        (MASKED, DisconnectReason.PROTOCOL_ERROR),  # RFC 6455, 5.1: the client has to fail it
        (b"\x83\x00", DisconnectReason.PROTOCOL_ERROR),
        (b"\x88\x02\x03\xe9", DisconnectReason.CLOSED),
        (b"\x88\x00", DisconnectReason.CLOSED),
    ],
)
async def test_nothing_counts_behind_the_end_of_a_peer_that_goes_on_sending(
    breach: bytes, reason: DisconnectReason
) -> None:
    """Also of a labeler, which may be silent for as long as it likes."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(accepted(await stream.receive_some()) + ONE + breach)
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(ONE)
                await trio.sleep(0.01)

    patient = Timeouts(connect=2.0, close=0.2, idle=None, ping_every=60.0, pong_within=1.0)
    async with (
        raw_server(serve) as endpoint,
        subscribe(endpoint, NSID, None, timeouts=patient) as subscription,
    ):
        with trio.fail_after(20):
            messages, ended = await receive_all(subscription)
    assert messages == [b"one"]
    assert ended.reason is reason


@pytest.mark.parametrize("handshake", [True, False])
async def test_a_peer_that_sends_a_byte_now_and_then_is_given_up(handshake: bool) -> None:
    """In the answer to the handshake and in a message, before anything of it is whole."""

    async def serve(stream: trio.SocketStream) -> None:
        answer = accepted(await stream.receive_some())
        slow = answer if handshake else b"\x82\x7e\x0f\xff" + bytes(0xFFF)
        with suppress(trio.BrokenResourceError):
            if not handshake:
                await stream.send_all(answer)
            for number in range(len(slow)):
                await stream.send_all(slow[number : number + 1])
                await trio.sleep(0.05)

    patient = Timeouts(connect=0.5, close=0.2, idle=None, ping_every=0.1, pong_within=0.3)
    async with raw_server(serve) as endpoint:
        with trio.fail_after(20):
            ended = await until_disconnected(endpoint, patient)
    wanted = DisconnectReason.CONNECT_TIMEOUT if handshake else DisconnectReason.PING_TIMEOUT
    assert ended.reason is wanted


@pytest.mark.parametrize(
    "bytes_after", [b"\xff\xff\xff garbage", b"\x82\x05ab", b"\xc2\x01x", b"\x82\xff" + b"\xff" * 8]
)
async def test_broken_framing_ends_the_connection(bytes_after: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await accept_by_hand(stream)
        await stream.send_all(bytes_after)
        await trio.sleep(0.05)

    async with raw_server(serve) as endpoint:
        ended = await until_disconnected(endpoint)
    assert ended.reason in {DisconnectReason.PROTOCOL_ERROR, DisconnectReason.LOST}


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\n\r\nhello", b"\x00" * 100]
)
async def test_a_server_that_speaks_something_else(answer: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(65_536)
        await stream.send_all(answer)
        await trio.sleep_forever()

    async with raw_server(serve) as endpoint:
        ended = await until_disconnected(endpoint)
    # A line of text may be the begin of an answer, and is waited for; the rest is told at once.
    assert ended.reason in {
        DisconnectReason.PROTOCOL_ERROR, DisconnectReason.REJECTED,
        DisconnectReason.CONNECT_TIMEOUT,
    }  # fmt: skip


async def test_a_server_that_never_answers() -> None:
    async with raw_server(stay) as endpoint:
        ended = await until_disconnected(endpoint)
    assert ended.reason is DisconnectReason.CONNECT_TIMEOUT


async def test_nobody_there() -> None:
    ended = await until_disconnected(Endpoint(False, "127.0.0.1", 9))
    assert ended.reason is DisconnectReason.CONNECT_FAILED
    ended = await until_disconnected(Endpoint(False, "no-such-host.invalid", 80))
    assert ended.reason in {DisconnectReason.CONNECT_FAILED, DisconnectReason.CONNECT_TIMEOUT}


async def test_tls_to_a_server_without_it() -> None:
    async with raw_server(lambda stream: stream.send_all(b"no TLS here")) as endpoint:
        ended = await until_disconnected(Endpoint(True, endpoint.host, endpoint.port))
    assert ended.reason is DisconnectReason.CONNECT_FAILED


SPENT = [(b"RateLimit-Remaining", b"0"), (b"RateLimit-Reset", b"70")]


@pytest.mark.parametrize(
    ("status", "headers", "reason", "retry_after"),
    [
        (429, [(b"Retry-After", b"7")], DisconnectReason.RATE_LIMITED, 7.0),
        (429, [(b"Retry-After", b"99999999")], DisconnectReason.RATE_LIMITED, 3_600.0),
        (429, [(b"Retry-After", b"Wed, 21 Oct 2026")], DisconnectReason.RATE_LIMITED, None),
        (429, SPENT, DisconnectReason.RATE_LIMITED, 70.0),
        (503, [(b"Retry-After", b"30")], DisconnectReason.REJECTED, 30.0),
        (502, [], DisconnectReason.REJECTED, None),
        (301, [(b"Location", b"wss://relay.test/")], DisconnectReason.REJECTED, None),
    ],
)
async def test_refusals(
    status: int,
    headers: list[tuple[bytes, bytes]],
    reason: DisconnectReason,
    retry_after: float | None,
) -> None:
    async def handle(request: WebSocketRequest) -> None:
        await request.reject(status, extra_headers=list(headers), body=b"<html>" * 1_000)

    async with handling(handle) as endpoint:
        ended = await until_disconnected(endpoint)
    assert (ended.reason, ended.retry_after) == (reason, retry_after)
    assert str(status) in ended.detail
    if status == 301:
        assert "relay.test" in ended.detail


async def test_an_error_of_the_body_is_raised_as_it_is() -> None:
    async with server(stay) as endpoint:
        with pytest.raises(ZeroDivisionError):
            async with subscribe(endpoint, NSID, None, timeouts=QUICK):
                raise ZeroDivisionError


async def test_it_can_be_cancelled_at_any_time() -> None:
    async def serve(socket: WebSocketConnection) -> None:
        while True:
            await socket.send_message(b"x")

    async with server(serve) as endpoint:
        for seconds in (0.0, 0.001, 0.01, 0.1):
            with trio.move_on_after(seconds) as scope:
                async with subscribe(endpoint, NSID, None, timeouts=QUICK) as subscription:
                    while True:
                        await subscription.receive()
            assert scope.cancelled_caught


async def test_leaving_says_goodbye_even_with_a_full_queue() -> None:
    codes: list[int] = []

    async def serve(socket: WebSocketConnection) -> None:
        try:
            for _ in range(10_000):
                await socket.send_message(bytes(50_000))
        except ConnectionClosed as closed:
            codes.append(closed.reason.code)  # type: ignore[union-attr]

    timeouts = Timeouts(close=3_600.0, max_queued_bytes=100_000)
    with trio.fail_after(60):
        async with server(serve) as endpoint:
            async with subscribe(endpoint, NSID, None, timeouts=timeouts) as subscription:
                while not subscription._socket.stalls:
                    await trio.sleep(0.01)
            while not codes:
                await trio.sleep(0.01)


@pytest.mark.parametrize(
    "timeouts",
    [
        Timeouts(close=0.3, idle=None, ping_every=0.05, pong_within=0.2),
        Timeouts(close=0.3, idle=0.2, ping_every=10.0),
    ],
)
async def test_a_process_that_was_held_up_does_not_blame_the_peer(timeouts: Timeouts) -> None:
    held_up = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        await accept_by_hand(stream)
        await held_up.wait()
        await stream.send_all(b"\x82\x01x")
        await trio.sleep_forever()

    async def hold_up() -> None:
        await trio.sleep(0.1)
        time.sleep(0.5)  # noqa: ASYNC251 - the whole process stands still
        held_up.set()

    async with (
        raw_server(serve) as endpoint,
        subscribe(endpoint, NSID, None, timeouts=timeouts) as subscription,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(hold_up)
        assert await subscription.receive() == [b"x"]


async def test_empty_messages_fill_the_queue_too() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await accept_by_hand(stream)
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"\x82\x00" * 10_000)

    timeouts = Timeouts(close=0.3, idle=None, ping_every=60.0, max_queued_bytes=1_000_000)
    async with (
        raw_server(serve) as endpoint,
        subscribe(endpoint, NSID, None, timeouts=timeouts) as subscription,
    ):
        with trio.fail_after(60):
            while not subscription._socket.stalled:
                await trio.sleep(0.01)
        # The last read is delivered as a whole, at most a receive buffer of two-byte frames.
        assert len(subscription._socket._queue) < 10_000 + RECEIVE_BUFFER // 2
        assert set(await subscription.receive()) == {b""}


@pytest.mark.parametrize(("fragment", "size"), [(b"\x00\x00", 0), (b"\x00\x01x", 1)])
async def test_fragments_of_a_message_take_no_more_than_it_may(fragment: bytes, size: int) -> None:
    count = 30_000

    async def serve(stream: trio.SocketStream) -> None:
        await accept_by_hand(stream)
        await stream.send_all(b"\x02\x01a" + fragment * count + b"\x80\x01z")
        await trio.sleep_forever()

    most = 0

    async with (
        raw_server(serve) as endpoint,
        subscribe(endpoint, NSID, None, timeouts=Timeouts(idle=None)) as subscription,
    ):
        socket = subscription._socket
        with trio.fail_after(60):
            while not socket.messages:
                most = max(most, len(socket._parts))
                await trio.lowlevel.checkpoint()
        assert await subscription.receive() == [b"a" + b"x" * (count * size) + b"z"]
        assert most <= 1_001
