"""The HTTP proxy through which this machine reaches others, and the hosts that need none."""

import ipaddress
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from rsky_pipeline.configuration.endpoints import Endpoint, parse_endpoint

_ALLOWED = "allowed is a URL of an HTTP proxy: http://[user:password@]host:port, or https://"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that speaks HTTP, over TLS where its URL says https."""

    endpoint: Endpoint
    authorization: str | None  # the value of its header
    exempt: tuple[str, ...]  # as in `no_proxy`

    def serves(self, host: str, port: int) -> bool:
        """Return whether a host is reached through the proxy. This machine never is.

        The forms of `no_proxy` are those of curl and others: `*`, a name (with or without a dot
        before it) for itself and all below it, an address or a network, each with or without a
        port.
        """
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            address = None
        if host == "localhost" or (address is not None and address.is_loopback):
            return False
        return not any(_matches(item, host, address, port) for item in self.exempt)


def parse_proxy(text: str, exempt: Sequence[str] = ()) -> Proxy:
    """Return the proxy of a URL; raises ValueError without repeating it: it may hold a password."""
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        location = parts.netloc.rpartition("@")[2]
        if parts.scheme not in {"http", "https"} or parts.path not in {"", "/"} or parts.query:
            raise ValueError(_ALLOWED)
        endpoint = parse_endpoint(f"{parts.scheme}://{location}")
    except ValueError:
        raise ValueError(_ALLOWED) from None
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {b64encode(pair.encode()).decode()}"
    items = (item.strip().lower() for item in exempt)
    return Proxy(endpoint, authorization, tuple(item for item in items if item))


def _matches(
    item: str, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int
) -> bool:
    if item == "*":
        return True
    name, separator, number = item.rpartition(":")
    if separator and number.isdigit() and (":" not in name or name.endswith("]")):
        if int(number) != port:
            return False
        item = name
    item = item.strip("[]")
    if address is not None:
        try:
            return address in ipaddress.ip_network(item, strict=False)
        except ValueError:
            return False
    item = item.removeprefix("*").strip(".")
    return bool(item) and (host == item or host.endswith(f".{item}"))
