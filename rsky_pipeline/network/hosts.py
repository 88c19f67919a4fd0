"""Hosts as operators and DID documents write them, and which addresses may be contacted.

Names and addresses in DID documents are chosen by strangers: `is_public_name` and
`is_public_address` keep the pipeline from being sent to machines of its operator's own network.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

_DNS_NAME = re.compile(
    r"(?=.{1,253}$)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*"
    r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
)
_SECURE = {"https": True, "wss": True, "http": False, "ws": False}

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
# Denied in addition to what `is_global` knows, which differs between Python versions.
_IPV4_EXCLUDED = tuple(
    ipaddress.IPv4Network(text)
    for text in ("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/3")
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server: whether it speaks TLS, its lower-case name or address, its port."""

    secure: bool
    host: str  # an IPv6 address stands here without brackets
    port: int

    @property
    def authority(self) -> str:
        """Return host and port as in a URL, a default port left out."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.secure else 80) else f"{name}:{self.port}"

    @property
    def key(self) -> str:
        """Return the form cursors and limits are kept by: no scheme, no default port."""
        return self.authority

    def http_url(self, path: str = "") -> str:
        """Return an http or https URL; `path` starts with a slash or is empty."""
        return f"{'https' if self.secure else 'http'}://{self.authority}{path}"

    def ws_url(self, path: str = "") -> str:
        """Return a ws or wss URL; `path` starts with a slash or is empty."""
        return f"{'wss' if self.secure else 'ws'}://{self.authority}{path}"

    def __str__(self) -> str:
        return self.http_url()


def parse_endpoint(text: str) -> Endpoint:
    """Return the server that a host name, host:port or URL names; without a scheme it has TLS.

    Raises ValueError, worded for the operator, for other schemes, user names, paths, queries and
    malformed names or ports.
    """
    shown = text if len(text) <= 100 else text[:100] + "..."
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        scheme, rest = "https", text.strip()
    secure = _SECURE.get(scheme.lower())
    if secure is None:
        raise ValueError(f"{shown!r}: the scheme must be https, wss, http or ws")
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{shown!r}: not a host or URL ({error})") from None
    if "@" in parts.netloc:
        raise ValueError("a host or URL must not contain a user name or password")
    if parts.path not in ("", "/") or "?" in rest or "#" in rest:
        raise ValueError(f"{shown!r}: only a host and a port, without a path or query")
    if port == 0:
        raise ValueError(f"{shown!r}: port 0 cannot be contacted")
    return Endpoint(secure, _normal_host(host or "", shown), port or (443 if secure else 80))


def parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that `host` spells, or None if it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public_address(address: str) -> bool:
    """Tell whether an IP address is a public unicast one, reachable by anybody."""
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
    """Tell whether `host` is a DNS name that can belong to a public server (no address, no
    single label, no special-use top-level domain)."""
    labels = host.split(".")
    if len(labels) < 2 or parse_address(host) is not None:
        return False
    # A last label of digits would be read as an IPv4 address by some resolvers (0x7f.1, 127.1).
    top = labels[-1]
    if top[0].isdigit() or top in _SPECIAL_TOP_LEVEL:
        return False
    return _DNS_NAME.fullmatch(host) is not None


def _normal_host(host: str, shown: str) -> str:
    host = host.lower()
    address = parse_address(host)
    if address is not None:
        return str(address)
    host = host.removesuffix(".")
    if _DNS_NAME.fullmatch(host) is None:
        raise ValueError(f"{shown!r}: not a host name (international names in their xn-- form)")
    return host
