"""A gRPC server for unary methods over clear HTTP/2, for a client of the operator's own.

h2 does HTTP/2 itself, with bounds for headers and requests; this has the sockets, gRPC's frame
around a message, and the other bounds. The port may be open to every program of the machine, and
must not cost the process its memory: connections, sizes and times are limited by the constants
below. A client that has proved that it knows the token keeps its connection for as long as it
wants, and is the last to lose it where there are too many.

Answers are HTTP 200 with the outcome in `grpc-status`, as gRPC has it ("gRPC over HTTP2").
"""

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from urllib.parse import quote

import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, Event, RequestReceived, StreamEnded
from h2.events import StreamReset as Reset
from h2.exceptions import ProtocolError

from rsky_pipeline.runtime.boundary import Boundary

MAX_CONNECTIONS = 16
MAX_REQUESTS = 100  # of one connection that are carried out; also h2's limit of those that arrive
MAX_MESSAGE = 4_096  # bytes
MAX_RECEIVED = 64 * 1_024  # bytes of a connection without an accepted request, in LIMIT_SECONDS
LIMIT_SECONDS = 10.0  # for a request to arrive, the first one to be accepted, an answer to be taken
_CHUNK = 16_384
_PREFIX = 5  # of a message: a flag (compressed), and its length
_COMPRESSED = 1
_GRPC = b"application/grpc"
_PLAIN = " ,;:()'"  # stand for themselves in grpc-message, like letters and digits

Method = Callable[[bytes], Awaitable[bytes]]


class GrpcStatus(IntEnum):
    """The outcomes that occur here, with their numbers in gRPC."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class GrpcError(Exception):
    """A request fails; the client is sent status and message."""

    def __init__(self, status: GrpcStatus, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(slots=True)
class _Request:
    """A request that has not arrived as a whole."""

    method: Method | None  # None: it is refused already
    refusal: GrpcError | None
    deadline: float
    body: bytearray = field(default_factory=bytearray)
    has_ended: bool = False

    def look(self, now: float) -> None:
        """Refuse it if it is too large, or late."""
        if self.refusal is None and len(self.body) > _PREFIX + MAX_MESSAGE:
            self.refusal = GrpcError(GrpcStatus.RESOURCE_EXHAUSTED, "the message is too large")
        if self.refusal is None and not self.has_ended and now >= self.deadline:
            self.refusal = GrpcError(GrpcStatus.DEADLINE_EXCEEDED, "the request did not arrive")


class GrpcServer:
    """Serves methods, by their paths, to clients with a token.

    `count` is called with the outcome of each request. An unexpected exception of a method fails
    its request, and is counted and logged by `boundary`.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        token: str,
        *,
        count: Callable[[GrpcStatus], object],
        boundary: Boundary,
    ) -> None:
        self._methods = {path.encode(): method for path, method in methods.items()}
        self._authorization = f"Bearer {token}".encode()
        self.count = count
        self.boundary = boundary
        self._connections: list[_Connection] = []  # the last one accepted a request last

    async def serve(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Accept clients until cancelled."""
        await trio.serve_listeners(self.converse, list(listeners))

    async def converse(self, stream: trio.abc.Stream) -> None:
        """Serve one client until it is gone, misbehaves, or others need its place."""
        if len(self._connections) >= MAX_CONNECTIONS:
            unproven = (each for each in self._connections if not each.is_proven)
            self._end(next(unproven, self._connections[0]))
        connection = _Connection(self, stream)
        self._connections.append(connection)
        try:
            await connection.run()
        finally:
            self._end(connection)
            await trio.aclose_forcefully(stream)

    def _end(self, connection: "_Connection") -> None:
        connection.scope.cancel()
        if connection in self._connections:
            self._connections.remove(connection)

    def accepted(self, connection: "_Connection") -> None:
        """Note that a client knows the token."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._connections.append(connection)

    def method(self, headers: Mapping[bytes, bytes]) -> Method:
        """Return the method that a request is for. Raises GrpcError."""
        given = headers.get(b"authorization", b"")
        if not hmac.compare_digest(given, self._authorization):
            raise GrpcError(GrpcStatus.UNAUTHENTICATED, "the token is missing, or wrong")
        found = self._methods.get(headers.get(b":path", b""))
        if found is None or headers.get(b":method") != b"POST":
            raise GrpcError(GrpcStatus.UNIMPLEMENTED, "there is no such method here")
        return found


class _Connection:
    """One client: the state of HTTP/2, and its requests.

    A task reads (`run`), one for each complete request carries it out and answers. Both change the
    state without a checkpoint in between, and send what that leaves to be sent under a lock, in
    order.
    """

    def __init__(self, server: GrpcServer, stream: trio.abc.Stream) -> None:
        self._server, self._stream = server, stream
        self._http = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._requests: dict[int, _Request] = {}
        self._carried_out = 0  # requests that are being carried out
        self._sending = trio.Lock()
        self._received = 0  # bytes since `_counted_from`, or since a request was accepted
        self._counted_from = self._began = trio.current_time()
        self.is_proven = False
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        """Read and answer until the client is gone or breaks the rules."""
        self._http.initiate_connection()
        with self.scope:
            async with trio.open_nursery() as nursery:
                await self._send()
                while (data := await self._receive()) is not None and self._take(data, nursery):
                    await self._send()
                await self._send()  # the reason, where the client broke the rules
                nursery.cancel_scope.cancel()

    async def _receive(self) -> bytes | None:
        """Return what came; nothing if a request is late, None if the connection is over."""
        deadline = min((each.deadline for each in self._requests.values()), default=float("inf"))
        if not self.is_proven:
            deadline = min(deadline, self._began + LIMIT_SECONDS)
        with trio.move_on_at(deadline):
            try:
                return bytes(await self._stream.receive_some(_CHUNK)) or None
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
        return b"" if self._requests else None

    def _take(self, data: bytes, nursery: trio.Nursery) -> bool:
        """Do what the bytes ask for that came; return whether the connection goes on."""
        now = trio.current_time()
        if now - self._counted_from > LIMIT_SECONDS:
            self._received, self._counted_from = 0, now
        self._received += len(data)
        try:
            goes_on = all(self._note(each, now) for each in self._http.receive_data(data))
            self._begin(nursery, now)
        except ProtocolError:  # or it is another protocol
            return False
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            self._server.boundary.caught(error, "gRPC connection")
            return False
        return goes_on and self._received <= MAX_RECEIVED

    def _note(self, event: Event, now: float) -> bool:
        """Note an event; return False for the last one of a connection."""
        if isinstance(event, RequestReceived):
            assert event.stream_id is not None
            assert event.headers is not None
            self._requests[event.stream_id] = self._request(dict(event.headers), now)
        elif isinstance(event, DataReceived):
            self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if (request := self._requests.get(event.stream_id)) is not None:
                request.body += event.data
        elif isinstance(event, StreamEnded):
            if (request := self._requests.get(event.stream_id)) is not None:
                request.has_ended = True
        elif isinstance(event, Reset):
            self._requests.pop(event.stream_id, None)
        return not isinstance(event, ConnectionTerminated)

    def _request(self, headers: Mapping[bytes, bytes], now: float) -> _Request:
        method, refusal = None, None
        try:
            method = self._server.method(headers)
            if not headers.get(b"content-type", b"").startswith(_GRPC):
                raise GrpcError(GrpcStatus.UNIMPLEMENTED, "the content-type is not gRPC")
            self.is_proven, self._received = True, 0
            self._server.accepted(self)
        except GrpcError as error:
            refusal = error
        return _Request(method, refusal, now + LIMIT_SECONDS)

    def _begin(self, nursery: trio.Nursery, now: float) -> None:
        """Refuse or carry out the requests of which enough has arrived."""
        for stream_id, request in list(self._requests.items()):
            request.look(now)
            message = b""
            if request.has_ended and request.refusal is None:
                try:
                    message = message_of(request.body)
                    # The peer may have reset requests that go on here.
                    if self._carried_out >= MAX_REQUESTS:
                        raise GrpcError(GrpcStatus.RESOURCE_EXHAUSTED, "too many requests")
                except GrpcError as error:
                    request.refusal = error
            if request.refusal is not None:
                del self._requests[stream_id]
                self._answer(stream_id, request.refusal, has_ended=request.has_ended)
            elif request.has_ended and request.method is not None:
                del self._requests[stream_id]
                self._carried_out += 1
                nursery.start_soon(self._carry_out, stream_id, request.method, message)

    async def _carry_out(self, stream_id: int, method: Method, message: bytes) -> None:
        try:
            self._answer(stream_id, await method(message))
        except GrpcError as error:
            self._answer(stream_id, error)
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            self._server.boundary.caught(error, "gRPC request")
            self._answer(stream_id, GrpcError(GrpcStatus.INTERNAL, "internal error"))
        finally:
            self._carried_out -= 1
        await self._send()

    def _answer(self, stream_id: int, answer: bytes | GrpcError, *, has_ended: bool = True) -> None:
        """Write an answer. A client that has reset its request, or takes no data, gets none."""
        head = [(":status", "200"), ("content-type", "application/grpc+proto")]
        status = answer.status if isinstance(answer, GrpcError) else GrpcStatus.OK
        end = [("grpc-status", str(int(status)))]
        self._server.count(status)
        with suppress(ProtocolError):
            if isinstance(answer, GrpcError):
                end += [("grpc-message", quote(answer.message, safe=_PLAIN)),
                        ("grpc-accept-encoding", "identity")]  # fmt: skip
                self._http.send_headers(stream_id, head + end, end_stream=True)
                if not has_ended:  # the rest of it is not wanted
                    self._http.reset_stream(stream_id, ErrorCodes.NO_ERROR)
            else:
                self._http.send_headers(stream_id, head)
                self._http.send_data(stream_id, framed(answer))
                self._http.send_headers(stream_id, end, end_stream=True)

    async def _send(self) -> None:
        """Send what is to be sent; end the connection of a client that does not take it."""
        async with self._sending:
            if data := self._http.data_to_send():
                try:
                    with trio.fail_after(LIMIT_SECONDS):
                        await self._stream.send_all(data)
                except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
                    self.scope.cancel()


def message_of(body: bytes | bytearray) -> bytes:
    """Return the message of a body that has one, without its prefix. Raises GrpcError."""
    if len(body) < _PREFIX:
        raise GrpcError(GrpcStatus.INTERNAL, "the request has no message")
    if body[0] & _COMPRESSED:
        raise GrpcError(GrpcStatus.UNIMPLEMENTED, "messages must not be compressed")
    if int.from_bytes(body[1:_PREFIX], "big") != len(body) - _PREFIX:
        raise GrpcError(GrpcStatus.INTERNAL, "the request is not one whole message")
    return bytes(body[_PREFIX:])


def framed(message: bytes) -> bytes:
    """Return a message as gRPC sends it."""
    return b"\0" + len(message).to_bytes(_PREFIX - 1, "big") + message
