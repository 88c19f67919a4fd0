"""Resolving DIDs, with a cache. https://atproto.com/specs/did"""

import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

import trio

from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.identity import DidDocument, parse_did_document
from rsky_pipeline.configuration.endpoints import Endpoint, parse_endpoint
from rsky_pipeline.health.rules import DIRECTORY, RuleVerdict, judged
from rsky_pipeline.network.http import HttpClient, HttpError

MAX_CACHED = 200_000
FRESH_SECONDS = 24 * 3600.0
# A forced look-up of one DID is repeated no sooner; nor is any look-up of one that was not found.
# That answer holds no longer, since mirrors lag behind exactly when an account is born.
FORCED_PAUSE_SECONDS = 60.0
MAX_DOCUMENT = 256 * 1024
MAX_FAILING = 10_000  # accounts whose failures are remembered
ALONE_SECONDS = 60.0  # of failures for one account, while the directory answers for others
_PLC = "did:plc:"
_RUN_SECONDS = 600.0  # failures that are further apart have nothing to do with each other
# Of the request, and so of its DID; other refusals may be of whoever asks, for a while.
_REFUSED_DID = frozenset({400, 414, 422})


class IdentityNotFoundError(Exception):
    """The DID does not exist, is tombstoned, or its method is not supported: final for now."""


class IdentityUnavailableError(Exception):
    """The directory or host did not give a usable answer: try again later.

    `of_account`: asking again in a moment is no use, and nothing is wrong with others. It answered,
    and its document of this account is unusable or the DID is one that it refuses; or it has failed
    for this account for a while, and answered for others meanwhile.
    """

    def __init__(self, message: str, *, of_account: bool = False) -> None:
        super().__init__(message)
        self.of_account = of_account


class SharedDocuments(Protocol):
    """Documents that the roles share: `streams.identities.SharedIdentities`."""

    async def find(self, did: str) -> tuple[int, DidDocument | None, float] | None:
        """Return the time for `put`, the document that is shared, and its age in seconds.

        None if nobody knows.
        """

    def put(self, document: DidDocument, time: int) -> None:
        """Share an answer of the directory, which was asked after `find` had returned this time."""

    def forget(self, did: str) -> None:
        """Let nobody find an answer of the directory from before now."""


@dataclass(frozen=True, slots=True)
class _Cached:
    document: DidDocument | None
    fetched: float


@dataclass(slots=True)
class _Failing:
    """A run of failures for one account; times are monotonic seconds."""

    since: float
    answers: int  # of the directory before
    latest: float = 0.0


class Directory:
    """DID documents by DID; concurrent requests for one DID make one look-up."""

    def __init__(
        self,
        http: HttpClient,
        plc_url: str,
        *,
        allow_private: bool = False,
        max_cached: int = MAX_CACHED,
        forced_pause: float = FORCED_PAUSE_SECONDS,
        fresh_seconds: float = FRESH_SECONDS,
        shared: SharedDocuments | None = None,
    ) -> None:
        """Without `shared`, as in commands, only this directory's own answers are cached."""
        self._http = http
        self._plc = parse_endpoint(plc_url)
        self._allow_private = allow_private
        self._max_cached = max_cached  # accounts, of about 900 bytes each
        self.forced_pause = forced_pause
        self._fresh_seconds = fresh_seconds
        self._shared = shared
        self._cache: OrderedDict[str, _Cached] = OrderedDict()
        self._running: dict[str, trio.Event] = {}
        self._answers = 0  # documents that the PLC directory has served
        # Of the PLC directory, since it answered last: when it failed first and last, and how.
        self._away: tuple[float, float, str] | None = None
        self._failing: OrderedDict[str, _Failing] = OrderedDict()

    async def resolve(self, did: str, force: bool = False) -> DidDocument:
        """Return the document of a DID, from the cache unless forced.

        Raises IdentityNotFoundError and IdentityUnavailableError.
        """
        while did in self._running:
            await self._running[did].wait()
        cached = self._cache.get(did)
        if cached is not None and self._usable(cached, force):
            self._cache.move_to_end(did)
            return _found(did, cached)
        done = self._running[did] = trio.Event()
        try:
            cached = await self._look_up(did, force)
        finally:
            del self._running[did]
            done.set()
        self._cache[did] = cached
        self._cache.move_to_end(did)
        while len(self._cache) > self._max_cached:
            self._cache.popitem(last=False)
        return _found(did, cached)

    def known(self, did: str, force: bool = False) -> DidDocument | None:
        """Return a document that `resolve` would return without asking anybody, else None."""
        cached = self._cache.get(did)
        if cached is None or cached.document is None or not self._usable(cached, force):
            return None
        self._cache.move_to_end(did)
        return cached.document

    def web_host(self, did: str) -> Endpoint:
        """Return the host that has the document of a did:web. Raises IdentityNotFoundError.

        Only its name counts: no path, and a port only where private hosts are allowed
        (https://atproto.com/specs/did#blessed-did-methods).
        """
        host = did.removeprefix("did:web:")
        scheme = "http" if self._allow_private else "https"
        if ":" not in host and ("%" not in host or self._allow_private):
            with suppress(ValueError):
                return parse_endpoint(f"{scheme}://{host.replace('%3A', ':')}")
        raise IdentityNotFoundError(f"{did[:100]}: did:web has a host name only")

    @property
    def verdicts(self) -> list[RuleVerdict]:
        """A finding while the PLC directory does not answer, as far as anybody asks it."""
        if self._away is None or time.monotonic() - self._away[1] > DIRECTORY.seconds:
            return []
        since, latest, text = self._away
        return [judged(DIRECTORY, "", latest - since, f"for {latest - since:.0f} s: {text}")]

    def forget(self, did: str) -> None:
        """Make the next look-up of a DID a fresh one, as after an identity event."""
        self._cache.pop(did, None)
        if self._shared is not None and did.startswith(_PLC):
            self._shared.forget(did)

    def _usable(self, cached: _Cached, force: bool) -> bool:
        age = time.monotonic() - cached.fetched
        if force or cached.document is None:
            return age < self.forced_pause
        return age < self._fresh_seconds

    async def _look_up(self, did: str, force: bool) -> _Cached:
        """Return a document that the roles share, unless forced, or the directory's answer."""
        found = None
        if self._shared is not None and did.startswith(_PLC):
            # Also when forced: whatever was forgotten before this time cannot come back.
            found = await self._shared.find(did)
        if found is not None:
            _, document, age = found
            shared = _Cached(document, time.monotonic() - age)
            if document is not None and not force and self._usable(shared, force=False):
                return shared
        document = await self._fetch(did)
        if self._shared is not None and found is not None and document is not None:
            self._shared.put(document, found[0])
        return _Cached(document, time.monotonic())

    async def _fetch(self, did: str) -> DidDocument | None:
        url, trusted = self._url(did)
        try:
            body = await self._http.get_json(
                url, max_bytes=MAX_DOCUMENT, total_seconds=15.0, trusted=trusted
            )
        except HttpError as error:
            if error.kind == "status" and error.status in {404, 410}:
                self._away = None if trusted else self._away
                return None
            unusable = error.kind in {"malformed", "too_big", "internal_error"}
            of_account = unusable or error.status in _REFUSED_DID
            if trusted and not of_account and error.status != 429:  # a limit is of whoever asks
                of_account = self._fails_alone(did)
                now = time.monotonic()
                self._away = (self._away or (now,))[0], now, str(error)
            raise IdentityUnavailableError(str(error), of_account=of_account) from error
        try:
            document = parse_did_document(body, did)
        except InvalidDataError as error:
            raise IdentityUnavailableError(f"{url}: {error}", of_account=True) from error
        if trusted:
            self._away = None
            self._answers += 1
            self._failing.pop(did, None)
        return document

    def _fails_alone(self, did: str) -> bool:
        """Note that the PLC directory failed for a DID; tell whether it does for this one alone."""
        now = time.monotonic()
        run = self._failing.pop(did, None)
        if run is None or now - run.latest > _RUN_SECONDS:
            run = _Failing(now, self._answers)
        run.latest = now
        self._failing[did] = run
        if len(self._failing) > MAX_FAILING:
            self._failing.popitem(last=False)
        return now - run.since >= ALONE_SECONDS and self._answers > run.answers

    def _url(self, did: str) -> tuple[str, bool]:
        if did.startswith(_PLC):
            return self._plc.http_url(f"/{quote(did, safe=':')}"), True
        if did.startswith("did:web:"):
            return self.web_host(did).http_url("/.well-known/did.json"), False
        raise IdentityNotFoundError(f"{did[:100]}: this DID method is not supported")


def _found(did: str, cached: _Cached) -> DidDocument:
    if cached.document is None:
        raise IdentityNotFoundError(f"{did} does not exist or was deleted")
    return cached.document
