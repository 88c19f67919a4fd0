"""Where the names of hosts lead, for limits that many names on one machine share."""

import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import urlsplit

import trio

MAX_CACHED = 20_000
FRESH_SECONDS = 300.0
LOOKUP_SECONDS = 5.0


class Addresses:
    """First addresses of hosts, each with its port, cached for some minutes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._cache: OrderedDict[tuple[str, int], tuple[str | None, float]] = OrderedDict()

    async def of(self, url: str) -> str | None:
        """Return address and port; None where the name leads nowhere, as the request will tell."""
        parts = urlsplit(url)
        key = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        cached = self._cache.get(key)
        if cached is not None and self._clock() - cached[1] < FRESH_SECONDS:
            return cached[0]
        found: str | None = None
        with trio.move_on_after(LOOKUP_SECONDS):
            found = await _look_up(*key)
        self._cache[key] = (found, self._clock())
        self._cache.move_to_end(key)
        while len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
        return found


async def _look_up(name: str, port: int) -> str | None:
    try:
        found = await trio.socket.getaddrinfo(name, port, type=trio.socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    # Sorted: servers turn the order round, and a limit has to stay where it is.
    return f"{min(str(item[4][0]) for item in found)}:{port}" if found else None
