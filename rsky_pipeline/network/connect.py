"""A TCP connection to a host: which of its addresses may be used, and which answers first.

Hosts come from DID documents that strangers wrote, who must not send us to machines of the
operator's own network. A guarded `Dialer` resolves names here, leaves out every address that is
not public, and connects to the addresses that it has checked, so that a second look-up (DNS
rebinding) cannot lead elsewhere.

All addresses of a host are tried, the families in turn, each a quarter of a second after the one
before (RFC 8305, "happy eyeballs"): where IPv6 leads nowhere, IPv4 is connected within that time.

Through a proxy (`http_proxy`) a host is connected to with CONNECT by its name, which the proxy
resolves. What resolves here and has no public address is refused all the same. That the proxy does
not let its clients into the operator's network is the proxy's; behind a name that leads there by
the time that it looks, only a server with a certificate for that name would get a request.

An IPv6 address may stand for an IPv4 address (NAT64, RFC 6052), which then is the one that counts.
Networks with a prefix of their own for that announce it by DNS (RFC 7050).
"""

import ipaddress
import re
import ssl
from collections.abc import Sequence
from contextlib import suppress

import trio

from rsky_pipeline.configuration.endpoints import is_dns_name
from rsky_pipeline.configuration.proxy import Proxy

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
MAX_ADDRESSES = 16  # of a host that are tried; anybody can publish any number
NEXT_ADDRESS_SECONDS = 0.25

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Where the octets of an IPv4 address stand, by the length of the prefix (RFC 6052, 2.2); octet 8
# of the IPv6 address is left out.
_EMBEDDED = {
    96: (12, 13, 14, 15), 64: (9, 10, 11, 12), 56: (7, 9, 10, 11), 48: (6, 7, 9, 10),
    40: (5, 6, 7, 9), 32: (4, 5, 6, 7),
}  # fmt: skip
_IPV4_ONLY = "ipv4only.arpa"  # has these addresses, and AAAA records only where NAT64 makes them
_IPV4_ONLY_ADDRESSES = frozenset(map(ipaddress.IPv4Address, ("192.0.0.170", "192.0.0.171")))
_PREFIX_SECONDS = 600.0  # for which an answer about prefixes holds
_PREFIX_WAIT_SECONDS = 5.0
_PROXIED_LOOKUP_SECONDS = 2.0  # of a name that the proxy resolves anyway
_MAX_PROXY_HEAD = 65_536
_PROXY_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[^\r\n]{0,100}")

Connection = trio.SocketStream | trio.SSLStream[trio.abc.Stream]


class ForbiddenAddressError(OSError):
    """A name leads to an address that strangers may not send us to.

    `resolved`: the name is one of a public host, and its addresses of this moment are not public.
    """

    def __init__(self, message: str, *, resolved: bool = False) -> None:
        super().__init__(message)
        self.resolved = resolved


class ProxyError(OSError):
    """The proxy does not connect us."""


class Dialer:
    """Opens connections; a guarded one only to public addresses of public names."""

    def __init__(self, *, guarded: bool, proxy: Proxy | None = None) -> None:
        self._guarded = guarded
        self._proxy = proxy
        self._proxy_tls = None
        if proxy is not None and proxy.endpoint.secure:
            self._proxy_tls = ssl.create_default_context()
        self._prefixes = Nat64Prefixes()

    async def open(self, host: str, port: int) -> Connection:
        """Connect to the first address of a host that answers; the caller limits the time.

        Raises ForbiddenAddressError and OSError.
        """
        if self._guarded and not is_public_name(host):
            raise ForbiddenAddressError(f"{host} is not the name of a public host")
        if self._proxy is not None and self._proxy.serves(host, port):
            return await self._through(self._proxy, host, port)
        addresses = await resolve(host, port)
        if self._guarded:
            addresses = await self._public(host, addresses)
        return await open_first(host, addresses[:MAX_ADDRESSES], port)

    async def open_proxy(self, proxy: Proxy) -> Connection:
        """Connect to the proxy itself. Raises ProxyError."""
        host, port = proxy.endpoint.host, proxy.endpoint.port
        try:
            stream = await open_first(host, (await resolve(host, port))[:MAX_ADDRESSES], port)
        except OSError as error:
            raise ProxyError(f"the proxy {proxy.endpoint} cannot be reached: {error}") from error
        return await secured(stream, host, self._proxy_tls) if self._proxy_tls else stream

    async def _through(self, proxy: Proxy, host: str, port: int) -> Connection:
        if self._guarded:
            found: list[str] = []
            with trio.move_on_after(_PROXIED_LOOKUP_SECONDS), suppress(OSError):
                found = await resolve(host, port)  # often nothing resolves here
            await self._public(host, found)
        stream = await self.open_proxy(proxy)
        try:
            await _tunnel(stream, proxy, host, port)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def _public(self, host: str, addresses: list[str]) -> list[str]:
        prefixes: Sequence[ipaddress.IPv6Network] = ()
        if any(":" in address for address in addresses):
            prefixes = await self._prefixes.current()
        public = [address for address in addresses if is_public_address(address, prefixes)]
        if addresses and not public:
            message = f"{host} leads to {addresses[0]}, which is not public"
            raise ForbiddenAddressError(message, resolved=True)
        return public


async def secured(
    stream: trio.abc.Stream, host: str, context: ssl.SSLContext
) -> trio.SSLStream[trio.abc.Stream]:
    """Speak TLS on a connection, which is closed if that fails. Raises BrokenResourceError."""
    tls = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    try:
        await tls.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return tls


async def _tunnel(stream: Connection, proxy: Proxy, host: str, port: int) -> None:
    """Have a proxy connect us to a host. Raises ProxyError."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    head = bytearray()
    try:
        await stream.send_all("\r\n".join([*lines, "", ""]).encode())
        while not head.endswith(b"\r\n\r\n"):  # nothing follows before we have sent something
            part = await stream.receive_some(_MAX_PROXY_HEAD)
            head += part
            if not part or len(head) > _MAX_PROXY_HEAD:
                break
    except trio.BrokenResourceError as error:
        raise ProxyError(f"the proxy {proxy.endpoint} broke the connection") from error
    status = _PROXY_STATUS.match(head)
    if status is None:
        raise ProxyError(f"the proxy {proxy.endpoint} does not speak HTTP")
    if not status[1].startswith(b"2"):
        answer = status[0].decode("latin-1").strip()
        raise ProxyError(f"the proxy {proxy.endpoint} answered {answer!r} for {target}")
    if not head.endswith(b"\r\n\r\n"):
        raise ProxyError(f"the proxy {proxy.endpoint} sent an answer without an end")


class Nat64Prefixes:
    """The prefixes by which this machine's network embeds IPv4 addresses, besides `NAT64`.

    Without them an address with a private IPv4 address in it would look like any other public one.
    """

    def __init__(self) -> None:
        self._found: tuple[ipaddress.IPv6Network, ...] = ()
        self._until = 0.0

    async def current(self) -> tuple[ipaddress.IPv6Network, ...]:
        """Return the prefixes, looked up anew once in a while."""
        if trio.current_time() >= self._until:
            self._until = trio.current_time() + _PREFIX_SECONDS  # others go on with the last answer
            with trio.move_on_after(_PREFIX_WAIT_SECONDS):
                try:
                    found = await resolve(_IPV4_ONLY, 443)
                except (OSError, UnicodeError):
                    found = []
                self._found = tuple(prefix for text in found if (prefix := nat64_prefix(text)))
        return self._found


def nat64_prefix(address: str) -> ipaddress.IPv6Network | None:
    """Return the prefix behind an address of `ipv4only.arpa`, None if it is not a made one."""
    parsed = parse_address(address)
    if not isinstance(parsed, ipaddress.IPv6Address) or parsed.ipv4_mapped is not None:
        return None
    for length in _EMBEDDED:
        if embedded(parsed, length) in _IPV4_ONLY_ADDRESSES:
            return ipaddress.IPv6Network((int(parsed), length), strict=False)
    return None


def embedded(address: ipaddress.IPv6Address, length: int) -> ipaddress.IPv4Address:
    """Return the IPv4 address in one that was made with a prefix of this length (RFC 6052)."""
    packed = address.packed
    return ipaddress.IPv4Address(bytes(packed[index] for index in _EMBEDDED[length]))


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name, the families in turn, each address once. Raises OSError."""
    found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    addresses = dict.fromkeys(str(item[4][0]) for item in found)
    # The system's order says which family works better here (RFC 6724).
    first, second = list[str](), list[str]()
    six = bool(addresses) and ":" in next(iter(addresses))
    for address in addresses:
        (first if (":" in address) is six else second).append(address)
    mixed = [address for pair in zip(first, second, strict=False) for address in pair]
    return [*mixed, *first[len(second) :], *second[len(first) :]]


async def open_first(host: str, addresses: Sequence[str], port: int) -> trio.SocketStream:
    """Connect to the first of some addresses that answers. Raises OSError if none does."""
    winner: trio.SocketStream | None = None
    failures: list[str] = []

    async def attempt(address: str, failed: trio.Event) -> None:
        nonlocal winner
        try:
            stream = await trio.open_tcp_stream(address, port)
        except OSError as error:
            failures.append(f"{address}: {_cause(error)}")
            failed.set()
            return
        if winner is not None:  # both answered before one of them could end the other
            await trio.aclose_forcefully(stream)
            return
        winner = stream
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(NEXT_ADDRESS_SECONDS):
                    await failed.wait()
    except BaseException:
        if winner is not None:
            await trio.aclose_forcefully(winner)
        raise
    if winner is None:
        raise OSError("; ".join(failures[:4]) or f"{host} has no address")
    return winner


def _cause(error: OSError) -> str:
    """Return why a connection failed; trio wraps the system's error into one of its own."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return str(cause.strerror if isinstance(cause, OSError) and cause.strerror else cause or error)


def parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that `host` spells, or None if it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public_address(address: str, prefixes: Sequence[ipaddress.IPv6Network] = ()) -> bool:
    """Return whether an IP address is a public unicast one, reachable by anybody.

    `prefixes` are those of the network's NAT64, besides the well-known one.
    """
    parsed = parse_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id is not None:
            return False
        if parsed.ipv4_mapped is not None:
            return is_public_address(str(parsed.ipv4_mapped))
        for prefix in (NAT64, *prefixes):
            if parsed in prefix:
                return is_public_address(str(embedded(parsed, prefix.prefixlen)))
        excluded = any(parsed in network for network in _IPV6_EXCLUDED)
        return parsed in _IPV6_PUBLIC and not excluded
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
