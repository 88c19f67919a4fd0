"""A small HTTP/1.1 server on trio with WebSocket upgrades, for the simulated hosts."""

import base64
import hashlib
import struct
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import parse_qsl, urlsplit

import h11
import orjson
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
    """An accepted WebSocket on a stream, which its owner closes."""

    def __init__(self, stream: trio.abc.Stream, trailing: bytes) -> None:
        self._stream = stream
        self._protocol = Connection(ConnectionType.SERVER, trailing_data=trailing)
        self._sending = trio.Lock()

    async def send_frames(self, frames: bytes) -> None:
        """Send frames made by `binary_frame`. Raises trio.BrokenResourceError if it is gone."""
        async with self._sending:
            await self._stream.send_all(frames)

    async def close(self, code: int = NORMAL_CLOSURE, reason: str = "") -> None:
        """Send a close frame; the stream itself stays open."""
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


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request; header names are lower-case, repeated parameters keep the last."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def wants_websocket(self) -> bool:
        """Whether the client asks to upgrade the connection."""
        return self.headers.get("upgrade", "").lower() == "websocket"


@dataclass(frozen=True, slots=True)
class SimulatedResponse:
    """An answer; a body that is not bytes is sent in chunks as it is produced.

    An asynchronous body is sent part by part, without gathering, and breaks the connection off by
    raising trio.BrokenResourceError.
    """

    status: int
    body: bytes | Iterable[bytes] | AsyncIterable[bytes]
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Accept the WebSocket and let `serve` use it; it is closed when `serve` returns."""

    serve: Callable[[WebSocket], Awaitable[None]]


Handler = Callable[[Request], Awaitable[SimulatedResponse | Upgrade]]


def json_response(value: object, status: int = 200) -> SimulatedResponse:
    """Return a JSON answer."""
    return SimulatedResponse(status, orjson.dumps(value))


def xrpc_error(status: int, name: str, message: str) -> SimulatedResponse:
    """Return an error in the form of XRPC."""
    return json_response({"error": name, "message": message}, status)


async def serve_connection(stream: trio.SocketStream, handler: Handler) -> None:
    """Answer the requests of one client until it leaves or upgrades."""
    connection = h11.Connection(h11.SERVER)
    try:
        async with stream:
            while (request := await _next_request(stream, connection)) is not None:
                answer = await handler(request)
                if isinstance(answer, Upgrade):
                    await _upgrade(stream, connection, request, answer)
                    return
                await _send(stream, connection, request, answer)
                if connection.our_state is h11.MUST_CLOSE:
                    return
                connection.start_next_cycle()
    except (h11.ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
        return  # the client's side is broken or gone; nobody is left to answer


async def _next_request(stream: trio.SocketStream, connection: h11.Connection) -> Request | None:
    request: h11.Request | None = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(65_536))
        elif isinstance(event, h11.Request):
            request = event
            if any(name == b"upgrade" for name, _ in event.headers):
                return _parse(event)
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            return _parse(request)
        elif isinstance(event, h11.ConnectionClosed):
            return None


def _parse(event: h11.Request) -> Request:
    parts = urlsplit(event.target.decode("latin-1"))
    return Request(
        method=event.method.decode("latin-1"),
        path=parts.path,
        query=dict(parse_qsl(parts.query, keep_blank_values=True)),
        headers={name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers},
    )


async def _send(
    stream: trio.SocketStream,
    connection: h11.Connection,
    request: Request,
    answer: SimulatedResponse,
) -> None:
    headers = [
        ("date", formatdate(usegmt=True)),
        ("content-type", answer.content_type),
        *answer.headers.items(),
    ]
    if isinstance(answer.body, bytes):
        headers.append(("content-length", str(len(answer.body))))
    else:
        headers.append(("transfer-encoding", "chunked"))
    data = connection.send(h11.Response(status_code=answer.status, headers=headers)) or b""
    if isinstance(answer.body, AsyncIterable):
        await stream.send_all(data)
        async for part in answer.body:
            await stream.send_all(connection.send(h11.Data(data=part)) or b"")
        data = b""
    elif request.method != "HEAD":
        parts = (answer.body,) if isinstance(answer.body, bytes) else answer.body
        for part in parts:
            data += connection.send(h11.Data(data=part)) or b""
            if len(data) >= 65_536:
                await stream.send_all(data)
                data = b""
    await stream.send_all(data + (connection.send(h11.EndOfMessage()) or b""))


async def _upgrade(
    stream: trio.SocketStream, connection: h11.Connection, request: Request, answer: Upgrade
) -> None:
    accept = accept_token(request.headers.get("sec-websocket-key", "").encode("latin-1"))
    response = h11.InformationalResponse(
        status_code=101,
        headers=[
            (b"upgrade", b"websocket"),
            (b"connection", b"Upgrade"),
            (b"sec-websocket-accept", accept),
        ],
    )
    await stream.send_all(connection.send(response) or b"")
    trailing, _ = connection.trailing_data
    try:
        await answer.serve(WebSocket(stream, trailing))
    finally:
        await trio.aclose_forcefully(stream)
