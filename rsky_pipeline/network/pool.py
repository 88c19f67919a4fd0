"""A pool of HTTP connections, and the requests that are sent over them."""

import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpcore
import trio

from rsky_pipeline import __version__
from rsky_pipeline.configuration.endpoints import normal_host
from rsky_pipeline.configuration.proxy import Proxy
from rsky_pipeline.network.connect import Connection, Dialer, ForbiddenAddressError, secured

USER_AGENT = f"rsky-pipeline/{__version__}"
CONNECT_SECONDS = 10.0
MAX_HEAD = 256 * 1024  # bytes of an answer's head and of the interim answers before it
MAX_IDLE_CONNECTIONS = 50
IDLE_SECONDS = 5.0  # a host may close a connection at any time after that
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = [
    (b"User-Agent", USER_AGENT.encode()), (b"Accept", b"*/*"), (b"Accept-Encoding", b"identity"),
]  # fmt: skip
# Allowed or reserved in a URL, or an escape: everything else is written as one.
_PLAIN = "%/:?#[]@!$&'()*+,;=~"


class InvalidUrlError(ValueError):
    """A URL that no request can be sent to."""


class _Stream(httpcore.AsyncNetworkStream):
    """A connection, whose peer can send no more than `MAX_HEAD` bytes before an answer begins.

    The library reads interim responses (`100 Continue`) for as long as they come.

    A server may close an idle connection just as we use it once more. That is nobody's trouble: the
    pool sends the request again on another connection, as browsers do (RFC 9112, 9.3.1).
    """

    def __init__(self, stream: Connection) -> None:
        self._stream = stream
        self._received = 0  # since the last request
        self.answered = False  # the head of the answer was read
        self._used_before = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        try:
            with _translated(httpcore.ReadTimeout, httpcore.ReadError, timeout):
                data = bytes(await self._stream.receive_some(max_bytes))
        except httpcore.ReadError:
            self._require_no_idle_end()
            raise
        if not data:
            self._require_no_idle_end()
        if not self.answered:
            self._received += len(data)
            if self._received > MAX_HEAD:
                raise httpcore.RemoteProtocolError("the head of the answer has no end")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._used_before |= self.answered
        self._received, self.answered = 0, False
        if buffer:
            with _translated(httpcore.WriteTimeout, httpcore.WriteError, timeout):
                await self._stream.send_all(buffer)

    def _require_no_idle_end(self) -> None:
        """Raise ConnectionNotAvailable where it ended before any answer to a further request."""
        if self._used_before and not self.answered and not self._received:
            raise httpcore.ConnectionNotAvailable

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        with _translated(httpcore.ConnectTimeout, httpcore.ConnectError, timeout):
            return _Stream(await secured(self._stream, server_hostname or "", ssl_context))

    def get_extra_info(self, info: str) -> Any:
        if info != "is_readable":  # the TLS object, for example: HTTP/2 is never offered
            return None
        # Asked of idle connections, to see whether their peer has closed them.
        stream: trio.abc.Stream = self._stream
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        assert isinstance(stream, trio.SocketStream)
        return stream.socket.is_readable()


@contextmanager
def _translated(
    late: type[Exception], broken: type[Exception], seconds: float | None
) -> Iterator[None]:
    """Limit the time of a step, and raise httpcore's exceptions for it."""
    try:
        with trio.fail_after(seconds or float("inf")):
            yield
    except trio.TooSlowError as error:
        raise late("out of time") from error
    except ForbiddenAddressError:
        raise
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
        raise broken(str(error.__cause__ or error)) from error


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects by way of a `Dialer`."""

    def __init__(self, dialer: Dialer, proxy: Proxy | None) -> None:
        """The pool's own connections to the proxy are not connected through the proxy."""
        self._dialer = dialer
        self._proxy = proxy

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with _translated(httpcore.ConnectTimeout, httpcore.ConnectError, timeout):
            proxy = self._proxy
            if proxy is not None and (host, port) == (proxy.endpoint.host, proxy.endpoint.port):
                return _Stream(await self._dialer.open_proxy(proxy))
            return _Stream(await self._dialer.open(host, port))

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class ClientResponse:
    """The head of a response; the names of `headers` are in lower case. `aclose` it."""

    url: str
    host: str
    status: int
    headers: Mapping[str, str]
    _source: httpcore.Response

    @property
    def location(self) -> str | None:
        """Where a redirect leads; None if this is none."""
        return self.headers.get("location") if self.status in _REDIRECTS else None

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises httpcore's exceptions."""
        return self._source.aiter_stream()

    async def aclose(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""
        await self._source.aclose()


@dataclass(frozen=True, slots=True)
class PostedBody:
    """The body of a POST, and the headers that go with it."""

    content: bytes
    headers: Mapping[str, str]


class ConnectionPool:
    """Connections to any number of hosts."""

    def __init__(
        self, context: ssl.SSLContext, *, guarded: bool, silence_seconds: float, most: int,
        proxy: Proxy | None = None,
    ) -> None:  # fmt: skip
        # Only requests without TLS are sent to the proxy itself, and a guarded pool sends none.
        self._proxy = None if guarded else proxy
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=most,
            max_keepalive_connections=MAX_IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=_Backend(Dialer(guarded=guarded, proxy=proxy), self._proxy),
        )
        self._timeouts = {
            "connect": CONNECT_SECONDS, "read": silence_seconds, "write": silence_seconds,
        }  # fmt: skip

    async def send(self, url: str, posted: PostedBody | None = None) -> ClientResponse:
        """Send a request, a POST if there is a body, and return its answer, whatever it is.

        It may be sent twice, where the server closes an idle connection. Raises InvalidUrlError,
        ForbiddenAddressError, OSError and httpcore's exceptions.
        """
        target, host = parse_url(url)
        headers = [(b"Host", _host_header(target)), *_HEADERS]
        content = b""
        if posted is not None:
            content = posted.content
            headers += [(name.encode(), value.encode()) for name, value in posted.headers.items()]
            headers.append((b"Content-Length", b"%d" % len(content)))
        request = httpcore.Request(
            "GET" if posted is None else "POST",
            self._route(target, headers),
            headers=headers,
            content=content,
            extensions={"timeout": self._timeouts},
        )
        source = await self._pool.handle_async_request(request)
        received = {
            name.decode("ascii", "replace").lower(): value.decode("latin-1")
            for name, value in source.headers
        }
        source.extensions["network_stream"].answered = True
        return ClientResponse(url, host, source.status, received, source)

    def _route(self, target: httpcore.URL, headers: list[tuple[bytes, bytes]]) -> httpcore.URL:
        """Return where a request is sent: without TLS to the proxy (RFC 9112, 3.2.2)."""
        proxy, port = self._proxy, target.port or 80
        host = target.host.decode()
        if proxy is None or target.scheme != b"http" or not proxy.serves(host, port):
            return target
        if proxy.authorization is not None:
            headers.append((b"Proxy-Authorization", proxy.authorization.encode()))
        return httpcore.URL(
            scheme="http", host=proxy.endpoint.host, port=proxy.endpoint.port, target=bytes(target)
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


def parse_url(url: str) -> tuple[httpcore.URL, str]:
    """Return where a request for a URL goes, and its host. Raises InvalidUrlError."""
    try:
        parts = urlsplit(url)
        name = (parts.hostname or "").encode("ascii" if url.isascii() else "idna").decode()
        port = parts.port
        path = quote(parts.path or "/", safe=_PLAIN)
        if parts.query:
            path += "?" + quote(parts.query, safe=_PLAIN)
    except ValueError as error:  # UnicodeError is one
        raise InvalidUrlError(f"{url[:200]!r} is not a URL: {error}") from error
    host = normal_host(name)  # names that getaddrinfo cannot encode are refused here
    if host is None or port == 0 or parts.scheme not in {"http", "https"}:
        raise InvalidUrlError(f"{url[:200]!r} is not a URL of a web server")
    return httpcore.URL(scheme=parts.scheme, host=host, port=port, target=path), host


def _host_header(url: httpcore.URL) -> bytes:
    host = b"[%b]" % url.host if b":" in url.host else url.host
    usual = {b"http": 80, b"https": 443}[url.scheme]
    return host if url.port in {None, usual} else b"%b:%d" % (host, url.port)
