"""The server's side of a WebSocket: ready-made frames out, pings answered, closing noticed.

Frames of a server are not masked, so the bytes of an event are the same for every subscriber and
are built once. Source: RFC 6455, sections 4.2.2, 5.2 and 5.5.
"""

import base64
import hashlib
import struct
from types import TracebackType

import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Ping
from wsproto.utilities import RemoteProtocolError

_ACCEPT_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FINAL_BINARY = 0x82
POLICY_VIOLATION = 1008
NORMAL_CLOSURE = 1000


def accept_token(key: bytes) -> bytes:
    """Return the Sec-WebSocket-Accept value that answers a client's key."""
    return base64.b64encode(hashlib.sha1(key + _ACCEPT_SUFFIX, usedforsecurity=False).digest())


def binary_frame(payload: bytes) -> bytes:
    """Return one unfragmented binary message as a server sends it."""
    size = len(payload)
    if size < 126:
        header = struct.pack("!BB", _FINAL_BINARY, size)
    elif size < 65_536:
        header = struct.pack("!BBH", _FINAL_BINARY, 126, size)
    else:
        header = struct.pack("!BBQ", _FINAL_BINARY, 127, size)
    return header + payload


class WebSocket:
    """An accepted WebSocket on a stream; closes the stream when left."""

    def __init__(self, stream: trio.abc.Stream, trailing: bytes = b"") -> None:
        self._stream = stream
        self._protocol = Connection(ConnectionType.SERVER, trailing_data=trailing)
        self._sending = trio.Lock()

    async def __aenter__(self) -> "WebSocket":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await trio.aclose_forcefully(self._stream)

    async def send_frames(self, frames: bytes) -> None:
        """Send frames made by `binary_frame`. Raises trio.BrokenResourceError if it is gone."""
        async with self._sending:
            await self._stream.send_all(frames)

    async def close(self, code: int = NORMAL_CLOSURE, reason: str = "") -> None:
        """Say goodbye; the stream itself is closed on leaving the context."""
        await self._send(self._protocol.send(CloseConnection(code=code, reason=reason)))

    async def read_until_closed(self) -> None:
        """Answer pings and ignore messages until the peer closes or breaks the protocol."""
        while True:
            try:
                data = await self._stream.receive_some(65_536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            try:
                self._protocol.receive_data(bytes(data) or None)
                for event in self._protocol.events():
                    if isinstance(event, Ping):
                        await self._send(self._protocol.send(event.response()))
                    elif isinstance(event, CloseConnection):
                        return
            except (RemoteProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
                return

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            await self._stream.send_all(data)
