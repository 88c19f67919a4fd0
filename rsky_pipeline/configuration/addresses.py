"""Checks of hosts, URLs and addresses as operators write them."""

import re
from urllib.parse import SplitResult, parse_qs, urlsplit

from rsky_pipeline.configuration.endpoints import normal_host, parse_endpoint, port_or_host

_SEARCH_PATH = re.compile(r"search_path\s*=\s*\"?([^\s,\"]+)")


def endpoint(text: str) -> str:
    """Return a relay, labeler or directory as given, without a slash at its end.

    Raises ValueError, for people, unless it is a host, host:port, or URL without a path.
    """
    parse_endpoint(text)
    return text.strip().rstrip("/")


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
    if normal_host(text) is None:
        raise ValueError("allowed is an IP address or a host name of this machine, without a port")
    return text


def _store_url(text: str, schemes: tuple[str, ...]) -> SplitResult:
    allowed = f"allowed is a URL that starts with {' or '.join(f'{item}://' for item in schemes)}"
    try:
        parts = urlsplit(text)
        several_hosts = "," in parts.netloc.rpartition("@")[2]  # PostgreSQL tries them in turn
        _ = None if several_hosts else parts.port
    except ValueError as error:
        raise ValueError(port_or_host(error)) from None
    if parts.scheme not in schemes or not text.startswith(f"{parts.scheme}://"):
        raise ValueError(allowed)
    return parts
