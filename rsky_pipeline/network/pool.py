"""A pool of connections, and which hosts and addresses it may connect to.

Hosts come from DID documents that strangers wrote, who must not send us to machines of the
operator's own network. A guarded pool resolves names here, checks every address, and connects to
the address that it has checked, so that a second look-up (DNS rebinding) cannot lead elsewhere.
"""

import ipaddress
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpcore
import trio

from rsky_pipeline import __version__
from rsky_pipeline.configuration.endpoints import is_dns_name, normal_host

# Top-level names that never lead to a public host (RFC 6761, 6762, 7686, 8375, ICANN's .internal).
_SPECIAL_TOP_LEVEL = frozenset(
    {"alt", "arpa", "example", "home", "internal", "invalid", "lan", "local", "localdomain",
     "localhost", "onion", "test"}
)  # fmt: skip
# Of IPv6 only global unicast is public; these parts of it are not, or hide an IPv4 address
# (IANA special-purpose registry; 6to4 and Teredo could tunnel to a private host).
_IPV6_PUBLIC = ipaddress.IPv6Network("2000::/3")
_IPV6_EXCLUDED = tuple(
    ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
# Denied in addition to `is_global`, which differs between Python versions.
_IPV4_EXCLUDED = tuple(
    ipaddress.IPv4Network(text)
    for text in ("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/3")
)

USER_AGENT = f"rsky-pipeline/{__version__}"
CONNECT_SECONDS = 10.0
MAX_IDLE_CONNECTIONS = 50
IDLE_SECONDS = 5.0  # a host may close a connection at any time after that
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = [
    (b"User-Agent", USER_AGENT.encode()), (b"Accept", b"*/*"), (b"Accept-Encoding", b"identity"),
]  # fmt: skip
# Allowed or reserved in a URL, or an escape: everything else is written as one.
_PLAIN = "%/:?#[]@!$&'()*+,;=~"


class ForbiddenAddressError(OSError):
    """A name leads to an address that strangers may not send us to."""


class InvalidUrlError(ValueError):
    """A URL that no request can be sent to."""


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects only to public addresses of public names."""

    def __init__(self) -> None:
        self._backend = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        if not is_public_name(host):
            raise ForbiddenAddressError(f"{host} is not the name of a public host")
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(item[4][0]) for item in found))
        for address in addresses:
            if not is_public_address(address):
                raise ForbiddenAddressError(f"{host} leads to {address}, which is not public")
        last: Exception | None = None
        for address in addresses[:4]:
            try:
                return await self._backend.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except httpcore.ConnectError as error:
                last = error
        raise last or httpcore.ConnectError(f"{host} has no address")

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


class ConnectionPool:
    """Connections to any number of hosts."""

    def __init__(
        self, context: ssl.SSLContext, *, guarded: bool, silence_seconds: float, most: int
    ) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=most,
            max_keepalive_connections=MAX_IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=_GuardedBackend() if guarded else httpcore.TrioBackend(),
        )
        self._timeouts = {
            "connect": CONNECT_SECONDS, "read": silence_seconds, "write": silence_seconds,
        }  # fmt: skip

    async def get(self, url: str) -> ClientResponse:
        """Send a request and return its answer, whatever it is.

        Raises InvalidUrlError, ForbiddenAddressError, OSError and httpcore's exceptions.
        """
        target, host = parse_url(url)
        request = httpcore.Request(
            "GET",
            target,
            headers=[(b"Host", _host_header(target)), *_HEADERS],
            extensions={"timeout": self._timeouts},
        )
        source = await self._pool.handle_async_request(request)
        headers = {
            name.decode("ascii", "replace").lower(): value.decode("latin-1")
            for name, value in source.headers
        }
        return ClientResponse(url, host, source.status, headers, source)

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


def parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that `host` spells, or None if it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public_address(address: str) -> bool:
    """Return whether an IP address is a public unicast one, reachable by anybody."""
    parsed = parse_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return is_public_address(str(parsed.ipv4_mapped))
        excluded = any(parsed in network for network in _IPV6_EXCLUDED)
        return parsed in _IPV6_PUBLIC and not excluded and parsed.scope_id is None
    if parsed is None:
        return False
    return parsed.is_global and not any(parsed in network for network in _IPV4_EXCLUDED)


def is_public_name(host: str) -> bool:
    """Return whether `host` is a DNS name that can belong to a public server (no address, no
    single label, no special-use top-level domain). A dot at its end is legal (RFC 1034, 3.1)."""
    host = host.removesuffix(".")
    if not is_dns_name(host) or "." not in host or parse_address(host) is not None:
        return False
    # A last label of digits would be read as an IPv4 address by some resolvers (0x7f.1, 127.1).
    top = host.rpartition(".")[2]
    return not top[0].isdigit() and top not in _SPECIAL_TOP_LEVEL
