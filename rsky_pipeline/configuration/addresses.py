"""Checks of hosts, URLs and addresses as operators write them.

What `endpoint` accepts, `network.hosts.parse_endpoint` accepts as well; a test holds them together.
"""

import ipaddress
import re
from urllib.parse import SplitResult, parse_qs, urlsplit

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*", re.IGNORECASE)
_TLS = {"wss": True, "https": True, "ws": False, "http": False}
_SEARCH_PATH = re.compile(r"search_path\s*=\s*\"?([^\s,\"]+)")


def endpoint(text: str) -> str:
    """Return a relay, labeler or directory as given, without a slash at its end.

    Raises ValueError, for people, unless it is a host, host:port, or URL without a path.
    """
    allowed = "allowed is a host or a URL (ws://, wss://, http://, https://) without a path"
    scheme, separator, rest = text.strip().rpartition("://")
    if separator and scheme.lower() not in _TLS:
        raise ValueError(f"{shortened(text)}: {allowed}")
    if "@" in rest:
        raise ValueError("a host must not contain a user name or password")
    rest = rest.rstrip("/")
    if rest.count(":") > 1 and "[" not in rest:
        raise ValueError(f"{shortened(text)}: an IPv6 address stands in brackets")
    try:
        parts = urlsplit(f"//{rest}")
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{shortened(text)}: {_port_or_host(error)}") from None
    if port == 0:
        raise ValueError(f"{shortened(text)}: the port must be 1 to 65535")
    if parts.path or "?" in rest or "#" in rest or not _is_host(parts.hostname or ""):
        raise ValueError(f"{shortened(text)}: {allowed}")
    return f"{scheme}{separator}{rest}"


def endpoint_key(text: str) -> str:
    """Return what two spellings of one host have in common: name and port, without the scheme."""
    scheme, _, rest = text.rpartition("://")
    parts = urlsplit(f"//{rest}")
    port = parts.port or (443 if _TLS.get(scheme.lower(), True) else 80)
    return f"{(parts.hostname or '').removesuffix('.')}:{port}"


def redis_url(text: str) -> str:
    """Return a Redis URL; raises ValueError without repeating it: it may hold a password."""
    parts = _store_url(text, ("redis", "rediss", "unix"))
    if parts.scheme == "unix":
        if not parts.path or parts.netloc.rpartition("@")[2]:
            raise ValueError("allowed is unix:///path/of/the/socket")
    elif not re.fullmatch(r"/?\d*", parts.path):
        raise ValueError("allowed is redis://host:port/N, where N is the number of the database")
    return text


def database_url(text: str) -> str:
    """Return a PostgreSQL URL; raises ValueError without repeating it: it may hold a password."""
    _store_url(text, ("postgresql", "postgres"))
    return text


def search_path_of(url: str) -> str | None:
    """Return the schema that a PostgreSQL URL puts first, or None if it says nothing of it."""
    options = " ".join(parse_qs(urlsplit(url).query).get("options", []))
    found = _SEARCH_PATH.search(options)
    return found[1] if found else None


def bind_address(text: str) -> str:
    """Return an address that a server can listen on."""
    if not _is_host(text):
        raise ValueError("allowed is an IP address or a host name of this machine, without a port")
    return text


def shortened(text: str) -> str:
    """Return a text short enough for an error message."""
    return text if len(text) <= 200 else text[:200] + "..."


def _store_url(text: str, schemes: tuple[str, ...]) -> SplitResult:
    allowed = f"allowed is a URL that starts with {' or '.join(f'{item}://' for item in schemes)}"
    try:
        parts = urlsplit(text)
        several_hosts = "," in parts.netloc.rpartition("@")[2]  # PostgreSQL tries them in turn
        _ = None if several_hosts else parts.port
    except ValueError as error:
        raise ValueError(_port_or_host(error)) from None
    if parts.scheme not in schemes or not text.startswith(f"{parts.scheme}://"):
        raise ValueError(allowed)
    return parts


def _port_or_host(error: ValueError) -> str:
    if "port" in str(error).lower():
        return "the port must be 1 to 65535"
    return "allowed is a host name, an IPv4 address, or an IPv6 address in brackets"


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return _HOST_NAME.fullmatch(host.removesuffix(".")) is not None
    return True
