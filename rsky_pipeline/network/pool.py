"""HTTP/1.1 connections to any number of hosts, kept for the next request to the same one.

h11 has the protocol, `connect` has how a host is connected to. A pool finds the connection for a
request in constant time, however many requests and connections there are: on a cold start
thousands of accounts are looked up at one directory.
"""

import ssl
from collections import OrderedDict, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import h11
import trio

from rsky_pipeline import __version__
from rsky_pipeline.configuration.endpoints import normal_host
from rsky_pipeline.configuration.proxy import Proxy
from rsky_pipeline.network.connect import Connection, Dialer, secured

USER_AGENT = f"rsky-pipeline/{__version__}"
CONNECT_SECONDS = 10.0  # name, TCP, proxy and TLS together
MAX_HEAD = 256 * 1024  # bytes of an answer's head and of the interim answers before it
MAX_FIELD = 100 * 1024  # bytes of a head that comes in one piece, or of a chunk's first line
MAX_IDLE_CONNECTIONS = 50
IDLE_SECONDS = 5.0  # a host may close a connection at any time after that
_READ_BYTES = 65_536
_MAX_AUTHORITY = 1_000  # characters; a name has 253 at most, and some of them are kept
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = [
    (b"User-Agent", USER_AGENT.encode()), (b"Accept", b"*/*"), (b"Accept-Encoding", b"identity"),
]  # fmt: skip
# Allowed or reserved in a URL, or an escape: everything else is written as one.
_PLAIN = "%/:?#[]@!$&'()*+,;=~"
# Raised by requests for a connection that breaks or does not speak HTTP; an OSError is one, too.
BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError)


class InvalidUrlError(ValueError):
    """A URL that no request can be sent to."""


class Origin(NamedTuple):
    """Where requests go that may share a connection."""

    secure: bool
    host: str
    port: int

    @property
    def authority(self) -> str:
        """Host and port as in a Host header: a usual port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


class _IdleEndError(Exception):
    """The server closed a kept connection just as it was used once more."""


class _PooledConnection:
    """A connection of a pool: one request at a time."""

    def __init__(self, origin: Origin, stream: Connection, silence_seconds: float) -> None:
        self.origin = origin
        self.idle_until = 0.0
        self._stream = stream
        self._silence_seconds = silence_seconds
        self._protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_FIELD)
        self._is_kept = False  # it has served a request before

    async def ask(self, request: h11.Request, content: bytes) -> h11.Response:
        """Send a request and return the head of its answer; the caller limits the time.

        Raises `BROKEN`, OSError and _IdleEndError.
        """
        protocol, received = self._protocol, 0
        data = protocol.send(request) or b""
        if content:
            data += protocol.send(h11.Data(data=content)) or b""
        data += protocol.send(h11.EndOfMessage()) or b""
        with suppress(trio.BrokenResourceError):  # a server may refuse a body without reading it
            await self._stream.send_all(data)
        while True:
            event = protocol.next_event()
            if isinstance(event, h11.Response):
                return event
            if event is h11.NEED_DATA:
                try:
                    data = bytes(await self._stream.receive_some(_READ_BYTES))
                except trio.BrokenResourceError:
                    data = b""
                    if received or not self._is_kept:
                        raise
                if not data and not received and self._is_kept:
                    raise _IdleEndError
                received += len(data)
                if received > MAX_HEAD:
                    raise h11.RemoteProtocolError("the head of the answer has no end")
                protocol.receive_data(data)
            elif not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                raise h11.RemoteProtocolError("the answer has no head")

    async def receive(self) -> bytes:
        """Return the next part of the body, empty at its end.

        Raises `BROKEN`, OSError, and trio.TooSlowError where nothing comes for too long.
        """
        while True:
            event = self._protocol.next_event()
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return b""
            if event is not h11.NEED_DATA:
                raise h11.RemoteProtocolError("the body has no end")
            with trio.fail_after(self._silence_seconds):
                data = await self._stream.receive_some(_READ_BYTES)
            self._protocol.receive_data(bytes(data))

    def is_usable(self) -> bool:
        """Return whether a kept connection is still open: an idle server sends nothing."""
        return trio.current_time() < self.idle_until and not self._socket.is_readable()

    def release(self) -> bool:
        """Prepare for the next request; return False where the last one did not end as planned."""
        protocol = self._protocol
        if not protocol.our_state is protocol.their_state is h11.DONE:
            return False
        protocol.start_next_cycle()
        self._is_kept = True
        self.idle_until = trio.current_time() + IDLE_SECONDS
        return True

    def close(self) -> None:
        """Close it at once, and without a farewell."""
        self._socket.close()

    @property
    def _socket(self) -> trio.socket.SocketType:
        stream: trio.abc.Stream = self._stream
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        assert isinstance(stream, trio.SocketStream)
        return stream.socket


@dataclass(frozen=True, slots=True)
class ClientResponse:
    """The head of a response; the names of `headers` are in lower case. `close` it."""

    url: str
    host: str
    status: int
    headers: Mapping[str, str]
    _connection: _PooledConnection
    _pool: "ConnectionPool"

    @property
    def location(self) -> str | None:
        """Where a redirect leads; None if this is none."""
        return self.headers.get("location") if self.status in _REDIRECTS else None

    async def receive(self) -> bytes:
        """Return the next part of the body as it comes, empty at its end.

        Raises `BROKEN`, OSError and trio.TooSlowError.
        """
        return await self._connection.receive()

    def close(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""
        self._pool.take_back(self._connection)


@dataclass(frozen=True, slots=True)
class PostedBody:
    """The body of a POST, and the headers that go with it."""

    content: bytes
    headers: Mapping[str, str]


class ConnectionPool:
    """Connections to any number of hosts; `most` requests are under way at a time."""

    def __init__(
        self, context: ssl.SSLContext, *, guarded: bool, silence_seconds: float, most: int,
        proxy: Proxy | None = None,
    ) -> None:  # fmt: skip
        self._context = context
        # Only requests without TLS are sent to the proxy itself, and a guarded pool sends none.
        self._proxy = None if guarded else proxy
        self._dialer = Dialer(guarded=guarded, proxy=proxy)
        self._silence_seconds = silence_seconds
        self._running = trio.Semaphore(most)
        self._open: set[_PooledConnection] = set()
        # Kept connections, those that were used longest ago first: of all hosts, and of each.
        self._kept: OrderedDict[_PooledConnection, None] = OrderedDict()
        self._by_origin: dict[Origin, deque[_PooledConnection]] = {}

    async def send(self, url: str, posted: PostedBody | None = None) -> ClientResponse:
        """Send a request, a POST if there is a body, and return its answer, whatever it is.

        The caller limits the time until then, but for connecting, which has its own limit.
        It may be sent twice, where the server closes an idle connection. That is nobody's trouble:
        it is sent again on another connection, as browsers do (RFC 9112, 9.3.1). Raises
        InvalidUrlError, ForbiddenAddressError, OSError, trio.TooSlowError and `BROKEN`.
        """
        origin, path = parse_url(url)
        headers = [(b"Host", origin.authority.encode()), *_HEADERS]
        method, content = b"GET", b""
        if posted is not None:
            method, content = b"POST", posted.content
            headers += [(name.encode(), value.encode()) for name, value in posted.headers.items()]
            headers.append((b"Content-Length", b"%d" % len(content)))
        server, target = self._route(origin, path, headers)
        request = h11.Request(method=method, target=target, headers=headers)
        await self._running.acquire()
        try:
            connection, head = await self._ask(server, request, content)
        except BaseException:
            self._running.release()
            raise
        received = {
            name.decode("ascii", "replace"): value.decode("latin-1") for name, value in head.headers
        }
        return ClientResponse(url, origin.host, head.status_code, received, connection, self)

    async def _ask(
        self, server: Origin, request: h11.Request, content: bytes
    ) -> tuple[_PooledConnection, h11.Response]:
        while True:
            connection = self._take(server) or await self._connect(server)
            try:
                return connection, await connection.ask(request, content)
            except _IdleEndError:
                self._close(connection)
            except BaseException:
                self._close(connection)
                raise

    async def _connect(self, origin: Origin) -> _PooledConnection:
        proxy = self._proxy
        with trio.fail_after(CONNECT_SECONDS):
            if proxy is not None and origin == _of_proxy(proxy):
                stream = await self._dialer.open_proxy(proxy)
            else:
                stream = await self._dialer.open(origin.host, origin.port)
            if origin.secure:
                stream = await secured(stream, origin.host, self._context)
        connection = _PooledConnection(origin, stream, self._silence_seconds)
        self._open.add(connection)
        return connection

    def _take(self, origin: Origin) -> _PooledConnection | None:
        """Return a kept connection, the one that was used last, and close those that ended."""
        now = trio.current_time()
        while self._kept and (oldest := next(iter(self._kept))).idle_until <= now:
            self._drop(oldest)
        while (kept := self._by_origin.get(origin)) is not None:
            connection = kept[-1]
            if connection.is_usable():
                self._forget(connection)
                return connection
            self._drop(connection)
        return None

    def take_back(self, connection: _PooledConnection) -> None:
        """Keep a connection for the next request, or close it."""
        self._running.release()
        if not connection.release():
            self._close(connection)
            return
        self._kept[connection] = None
        self._by_origin.setdefault(connection.origin, deque()).append(connection)
        if len(self._kept) > MAX_IDLE_CONNECTIONS:
            self._drop(next(iter(self._kept)))

    def _drop(self, connection: _PooledConnection) -> None:
        self._forget(connection)
        self._close(connection)

    def _close(self, connection: _PooledConnection) -> None:
        self._open.discard(connection)
        connection.close()

    def _forget(self, connection: _PooledConnection) -> None:
        """Keep a connection no longer: the oldest or the newest of its host."""
        del self._kept[connection]
        kept = self._by_origin[connection.origin]
        if kept[-1] is connection:
            kept.pop()
        else:
            kept.popleft()
        if not kept:
            del self._by_origin[connection.origin]

    def _route(
        self, origin: Origin, path: bytes, headers: list[tuple[bytes, bytes]]
    ) -> tuple[Origin, bytes]:
        """Return where a request is sent: without TLS to the proxy (RFC 9112, 3.2.2)."""
        proxy = self._proxy
        if proxy is None or origin.secure or not proxy.serves(origin.host, origin.port):
            return origin, path
        if proxy.authorization is not None:
            headers.append((b"Proxy-Authorization", proxy.authorization.encode()))
        return _of_proxy(proxy), b"http://%b%b" % (origin.authority.encode(), path)

    def close(self) -> None:
        """Close all connections; requests that are under way fail."""
        for connection in [*self._kept]:
            self._drop(connection)
        for connection in [*self._open]:
            self._close(connection)


def _of_proxy(proxy: Proxy) -> Origin:
    """Return where requests to a proxy itself go; `Dialer.open_proxy` speaks TLS with it."""
    return Origin(False, proxy.endpoint.host, proxy.endpoint.port)


def parse_url(url: str) -> tuple[Origin, bytes]:
    """Return where a request for a URL goes, and its path and query. Raises InvalidUrlError."""
    try:
        parts = urlsplit(url)
        few = len(parts.netloc) <= _MAX_AUTHORITY
        origin = _parse_origin(parts.scheme, parts.netloc) if few else None
        path = quote(parts.path or "/", safe=_PLAIN)
        if parts.query:
            path += "?" + quote(parts.query, safe=_PLAIN)
    except ValueError as error:  # UnicodeError is one
        raise InvalidUrlError(f"{url[:200]!r} is not a URL: {error}") from error
    if origin is None:
        raise InvalidUrlError(f"{url[:200]!r} is not a URL of a web server")
    return origin, path.encode()


@lru_cache(1_000)
def _parse_origin(scheme: str, authority: str) -> Origin | None:
    """Return where requests to a server go, None if it is no web server's. Raises ValueError."""
    parts = urlsplit(f"//{authority}")
    name = (parts.hostname or "").encode("ascii" if authority.isascii() else "idna").decode()
    port = parts.port
    host = normal_host(name)  # names that getaddrinfo cannot encode are refused here
    if host is None or port == 0 or scheme not in {"http", "https"}:
        return None
    secure = scheme == "https"
    return Origin(secure, host, port or (443 if secure else 80))
