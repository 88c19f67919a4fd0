"""A WebSocket that hands over whole batches of messages and survives one that is too big.

trio-websocket passes each message through a channel, with a switch of tasks for each, and closes
the connection over a message above its limit. At thousands of messages a second the first costs
more than everything else (35 against 16 microseconds a message, measured), and the second would be
met again after each reconnect at the same cursor. This subclass replaces only what happens to a
finished message; tests/unit/network/test_subscription.py fails if the library changes under it.

Below the library, a `Splitter` takes whole, unfragmented binary messages out of the byte stream;
the handshake, control frames, fragments and everything unusual are left to the library.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import trio
from trio_websocket import CloseReason, ConnectionRejected, WebSocketConnection
from wsproto import ConnectionType, WSConnection
from wsproto.events import BytesMessage, CloseConnection, RejectConnection, TextMessage

# The sync specification allows 5 MB; a little above it is not worth losing an event over.
MAX_MESSAGE = 5 * 1024 * 1024
RECEIVE_BUFFER = 512 * 1024  # bytes read at once; the states of their repos are read together
_MESSAGE_COST = 100  # bytes that a message takes in memory besides its payload, which may be empty
_MAX_PARTS = 1_000  # fragments that are kept apart: one of a byte takes forty times its size
_MAX_TAKEN = 256  # messages handed over at once, so that the event loop gets its turn
_HEAD_END = b"\r\n\r\n"
_WHOLE_BINARY = 0x82
_FINAL, _OPCODE, _MASKED, _LENGTH = 0x80, 0x0F, 0x80, 0x7F
_CONTINUATION, _CLOSE = 0x0, 0x8


class FrameSocket(WebSocketConnection):
    """The client's side of a WebSocket whose messages are taken in batches.

    It reads on until `max_queued` bytes wait, then stops reading, which the peer feels.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        host: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        max_queued: int,
    ) -> None:
        super().__init__(
            _Below(stream, self._deliver),
            WSConnection(ConnectionType.CLIENT),
            host=host,
            path=path,
            client_extra_headers=headers,
            receive_buffer_size=RECEIVE_BUFFER,
        )
        self._max_queued = max_queued
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._parts: list[bytes | bytearray] = []  # fragments of one message, empty ones left out
        self._size = 0
        self._room = trio.Event()
        self.arrived = trio.Event()  # set while messages wait or the reader has ended
        self.stalls = 0  # how often reading stopped for want of room
        self.stalled = False
        self.discarding = False  # on the way out nothing is kept
        # Set by a close frame and by bytes that RFC 6455 forbids (a masked frame: 5.1); nothing
        # behind them counts, and the peer has to close the connection.
        self.closing = trio.Event()
        self.closed_with = CloseReason(1005, None)
        self.messages = 0
        self.text_messages = 0
        self.oversize_messages = 0

    async def read(self) -> None:
        """Read until the connection ends; afterwards `closed` may hold the reason."""
        await self._reader_task()

    async def opened(self) -> None:
        """Wait until the handshake is done or the reader has ended."""
        await self._open_handshake.wait()

    def end(self) -> None:
        """Wake everybody who waits: no more messages will come."""
        self._open_handshake.set()
        self.arrived.set()

    def take(self) -> list[bytes]:
        """Return the next messages, none if none wait."""
        queue = self._queue
        if len(queue) <= _MAX_TAKEN:
            taken = list(queue)
            queue.clear()
            self._queued = 0
        else:
            taken = [queue.popleft() for _ in range(_MAX_TAKEN)]
            self._queued -= _cost(taken)
        self._room.set()
        return taken

    def discard(self) -> None:
        """Keep nothing from now on, so that a full queue cannot hold up the close frame."""
        self.discarding = True
        self._queue.clear()
        self._room.set()

    async def _handle_message_event(self, event: BytesMessage | TextMessage) -> None:
        data = event.data
        self._size += len(data)
        if isinstance(data, str):
            if event.message_finished:
                self.text_messages += 1
                self._size = 0
            return
        if self._size > MAX_MESSAGE:
            self._parts.clear()
        elif len(self._parts) >= _MAX_PARTS:
            self._parts = [b"".join(self._parts), data]
        elif data:
            self._parts.append(data)
        if not event.message_finished:
            return
        size, parts = self._size, self._parts
        self._size, self._parts = 0, []
        if size > MAX_MESSAGE:
            self.messages += 1
            self.oversize_messages += 1
        else:
            await self._deliver([b"".join(parts)])

    async def _deliver(self, messages: Sequence[bytes]) -> None:
        if self.closing.is_set():
            return
        self.messages += len(messages)
        if self.discarding:
            return
        self._queue.extend(messages)
        self._queued += _cost(messages)
        self.arrived.set()
        if self._queued >= self._max_queued:
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        self.stalls += 1
        self.stalled = True
        while self._queued >= self._max_queued and not self.discarding:
            self._room = trio.Event()
            await self._room.wait()
        self.stalled = False

    async def _handle_close_connection_event(self, event: CloseConnection) -> None:
        self.closed_with = CloseReason(event.code, event.reason)
        self.closing.set()
        await super()._handle_close_connection_event(event)

    async def _handle_reject_connection_event(self, event: RejectConnection) -> None:
        # The body is of no use, and the library would collect any amount of it.
        raise ConnectionRejected(event.status_code, tuple(event.headers), None)


def _cost(messages: Sequence[bytes]) -> int:
    """Return the bytes that messages take in memory."""
    return sum(map(len, messages)) + _MESSAGE_COST * len(messages)


class _Below(trio.abc.Stream):
    """A stream without the messages in it, which are delivered past its reader."""

    def __init__(
        self, stream: trio.abc.Stream, deliver: Callable[[Sequence[bytes]], Awaitable[None]]
    ) -> None:
        self._stream = stream
        self._deliver = deliver
        self._splitter = Splitter(MAX_MESSAGE)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        while True:
            messages, rest = self._splitter.take()
            if messages:
                await self._deliver(messages)
            if rest:
                return rest
            data = await self._stream.receive_some(max_bytes)
            if not data:
                return b""
            self._splitter.feed(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Splitter:
    """Splits one connection's bytes, from the answer to the handshake on.

    `largest` is the size of the largest message that is taken out, in bytes.
    """

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._buffer = bytearray()
        self._in_head = True
        self._in_fragments = False
        self._left_over = 0  # bytes of a frame that is left to the library

    def feed(self, data: bytes | bytearray) -> None:
        """Add bytes that have come."""
        self._buffer += data

    def take(self) -> tuple[list[bytes], bytes]:
        """Return messages, and the bytes behind them that are left to the library.

        Messages behind those bytes are returned by the next call, so that order is kept. Both are
        empty when nothing can be done before more has come.
        """
        if self._in_head:
            return [], self._take_head()
        messages: list[bytes] = []
        others: list[bytes] = []
        at = 0
        with memoryview(self._buffer) as view:
            while True:
                if self._left_over:
                    part = bytes(view[at : at + self._left_over])
                    others.append(part)
                    at += len(part)
                    self._left_over -= len(part)
                    if self._left_over:
                        break
                header = _read_header(view, at)
                if header is None:
                    break
                start, end = header
                if self._is_usual(view, at, end - start):
                    if others or end > len(view):
                        break
                    messages.append(bytes(view[start:end]))
                    at = end
                else:
                    self._note_fragment(view[at])
                    self._left_over = end - at
        del self._buffer[:at]
        return messages, b"".join(others)

    def _take_head(self) -> bytes:
        """Return what belongs to the answer to the handshake, as far as it has come."""
        found = self._buffer.find(_HEAD_END)
        # Of an end that has come in part nothing is given away, so that it is found.
        size = found + len(_HEAD_END) if found >= 0 else len(self._buffer) - len(_HEAD_END) + 1
        self._in_head = found < 0
        head = bytes(self._buffer[: max(size, 0)])
        del self._buffer[: len(head)]
        return head

    def _is_usual(self, view: memoryview, at: int, size: int) -> bool:
        return (
            view[at] == _WHOLE_BINARY
            and not view[at + 1] & _MASKED
            and not self._in_fragments
            and size <= self._largest
            and (view[at + 1] < 126 or size > (125 if view[at + 1] == 126 else 0xFFFF))
        )

    def _note_fragment(self, first: int) -> None:
        opcode = first & _OPCODE
        if opcode < _CLOSE and not first & _FINAL:
            self._in_fragments = True
        elif opcode == _CONTINUATION:
            self._in_fragments = False


def _read_header(view: memoryview, at: int) -> tuple[int, int] | None:
    """Return where the payload of a frame begins and ends; None if its header is not all there."""
    if len(view) < at + 2:
        return None
    start = at + 2
    size = view[at + 1] & _LENGTH
    if size > 125:
        width = 2 if size == 126 else 8
        if len(view) < start + width:
            return None
        size = int.from_bytes(view[start : start + width], "big")
        start += width
    if view[at + 1] & _MASKED:
        start += 4
    return start, start + size
