"""Whether an account lives at the host that sent an event of it, where that host is a PDS.

A relay passes on account events of each account's present host only. A PDS sends those of all
accounts that it has, also of one that has moved away and that it deactivates afterwards, or of one
that is still moving in: only the host that the account's DID document names is heard.

A host is a PDS if it describes itself as one (`com.atproto.server.describeServer`), which no
account can bring about. A name in a DID document that is not the one we reach the PDS by is the
same server if both describe themselves by one DID.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakValueDictionary

import trio

from rsky_pipeline.configuration.endpoints import Endpoint, HostKey, parse_endpoint
from rsky_pipeline.ingester.commits.signatures import KeyDirectory
from rsky_pipeline.network.directory import IdentityNotFoundError, IdentityUnavailableError
from rsky_pipeline.network.http import HttpClient, HttpError

DESCRIBE_SERVER = "/xrpc/com.atproto.server.describeServer"
DESCRIBE_SECONDS = 5.0
AGAIN_SECONDS = 60.0  # after which a host that did not answer is asked again
KNOWN_SECONDS = 86_400.0
LOOKUP_SECONDS = 20.0  # all frames behind one wait for it
MAX_DOCUMENT = 64 * 1024
MAX_HOSTS = 10_000

# The DID that a server describes itself by, "" if it is no PDS. Raises HttpError for no answer.
Describe = Callable[[Endpoint], Awaitable[str]]


def describer(http: HttpClient, trusted: Endpoint) -> Describe:
    """Return a function that asks servers; `trusted` is the operator's choice, others are not."""

    async def describe(endpoint: Endpoint) -> str:
        try:
            answer: Any = await http.get_json(
                endpoint.http_url(DESCRIBE_SERVER), max_bytes=MAX_DOCUMENT,
                total_seconds=DESCRIBE_SECONDS, trusted=endpoint == trusted,
            )  # fmt: skip
        except HttpError as error:
            refused = 400 <= error.status < 500 and error.status != 429
            if error.kind == "malformed" or refused or error.status == 501:
                return ""
            raise
        did = answer.get("did") if isinstance(answer, dict) else None
        return did if isinstance(did, str) and "availableUserDomains" in answer else ""

    return describe


class AccountHomes:
    """Decides which account events of one host are heard: all of them, unless it is a PDS."""

    def __init__(self, endpoint: Endpoint, directory: KeyDirectory, describe: Describe) -> None:
        self._endpoint = endpoint
        self._directory = directory
        self._describe = describe
        self._servers: OrderedDict[HostKey, tuple[str | None, float]] = OrderedDict()
        # Each as long as somebody asks: a PDS sends events of many accounts at once, and one
        # question about each server is enough for all of them.
        self._asking: WeakValueDictionary[HostKey, trio.Lock] = WeakValueDictionary()

    @property
    def hears_all(self) -> bool:
        """Whether the host is known to be no PDS, so that nobody need be asked."""
        known, until = self._servers.get(self._endpoint.key, (None, 0.0))
        return known == "" and until > trio.current_time()

    async def hears(self, did: str) -> bool:
        """Return whether an account event counts; it does where that cannot be found out.

        A status that is wrong until the next event is better than one that nobody has.
        """
        with trio.move_on_after(LOOKUP_SECONDS):
            server = await self._server(self._endpoint)
            if not server:
                return True
            try:
                document = await self._directory.resolve(did)
                home = None if document.pds is None else parse_endpoint(document.pds)
            except (IdentityNotFoundError, IdentityUnavailableError, ValueError):
                return True
            if home is None or home.key == self._endpoint.key:
                return True
            return await self._server(home) in {None, server}
        return True

    async def _server(self, endpoint: Endpoint) -> str | None:
        """Return the DID of a server, "" for no PDS, None if it does not answer."""
        async with self._asking.setdefault(endpoint.key, trio.Lock()):
            known, until = self._servers.get(endpoint.key, (None, 0.0))
            if until <= trio.current_time():
                try:
                    known, seconds = await self._describe(endpoint), KNOWN_SECONDS
                except HttpError:
                    known, seconds = None, AGAIN_SECONDS
                self._servers[endpoint.key] = known, trio.current_time() + seconds
                while len(self._servers) > MAX_HOSTS:
                    self._servers.popitem(last=False)
        return known
