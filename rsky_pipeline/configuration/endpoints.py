"""Relays, labelers and directories as operators write them, parsed once into one spelling.

`wss://Relay.Example./`, `relay.example` and `https://relay.example:443` are one server. Cursors,
metrics and health documents are kept by its `key`, so no other code compares hosts as text.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import NewType
from urllib.parse import urlsplit

# How cursors, limits and metrics name a host: only `Endpoint.key` makes one, or the place that
# reads one back from where it was stored.
HostKey = NewType("HostKey", str)

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$)(?:{_LABEL}\.)*{_LABEL}")
_ZONE = re.compile(r"[a-z0-9._~-]{1,32}")  # https://www.rfc-editor.org/rfc/rfc6874
_SECURE = {"https": True, "wss": True, "http": False, "ws": False}
_ALLOWED = "allowed is a host or a URL (ws://, wss://, http://, https://) without a path"


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
    def key(self) -> HostKey:
        """Return the form cursors and limits are kept by: no scheme, no default port."""
        return HostKey(self.authority)

    def http_url(self, path: str = "") -> str:
        """Return an http or https URL; `path` starts with a slash or is empty."""
        return f"{'https' if self.secure else 'http'}://{self.authority}{path}"

    def __str__(self) -> str:
        return self.http_url()


def parse_endpoint(text: str) -> Endpoint:
    """Return the server that a host name, host:port or URL names; without a scheme it has TLS.

    Raises ValueError, worded for the operator, for other schemes, user names, paths, queries and
    malformed names or ports. The message never repeats a password.
    """
    scheme, separator, rest = text.strip().rpartition("://")
    secure = _SECURE.get(scheme.lower()) if separator else True
    if secure is None:
        raise ValueError(f"{shortened(text)}: {_ALLOWED}")
    if "@" in rest:
        raise ValueError("a host must not contain a user name or password")
    rest = rest.rstrip("/")
    if rest.count(":") > 1 and "[" not in rest:
        raise ValueError(f"{shortened(text)}: an IPv6 address stands in brackets")
    try:
        parts = urlsplit(f"//{rest}")
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{shortened(text)}: {port_or_host(error)}") from None
    if port == 0:
        raise ValueError(f"{shortened(text)}: the port must be 1 to 65535")
    host = normal_host(parts.hostname or "")
    if parts.path or "?" in rest or "#" in rest or host is None:
        raise ValueError(f"{shortened(text)}: {_ALLOWED}")
    return Endpoint(secure, host, port or (443 if secure else 80))


def normal_host(text: str) -> str | None:
    """Return the one spelling of a name or an address (without brackets), None if it is neither."""
    name = text.lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        name = name.removesuffix(".")
        return name if is_dns_name(name) else None
    zone = getattr(address, "scope_id", None)  # may be any text
    return str(address) if zone is None or _ZONE.fullmatch(zone) else None


def is_dns_name(text: str) -> bool:
    """Return whether a text has the form of a DNS name in lower case, without a dot at its end."""
    return _HOST_NAME.fullmatch(text) is not None


def shortened(text: str) -> str:
    """Return a text short enough for an error message."""
    return text if len(text) <= 200 else text[:200] + "..."


def port_or_host(error: ValueError) -> str:
    """Return the allowed form where `urlsplit` raised this error."""
    if "port" in str(error).lower():
        return "the port must be 1 to 65535"
    return "allowed is a host name, an IPv4 address, or an IPv6 address in brackets"
