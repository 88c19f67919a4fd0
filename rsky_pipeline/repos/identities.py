"""DID look-ups, within the rate limits of the PLC directory and of did:web hosts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.health.rules import RuleVerdict
from rsky_pipeline.network.directory import (
    Directory,
    IdentityNotFoundError,
    IdentityUnavailableError,
)
from rsky_pipeline.network.http import HttpError
from rsky_pipeline.repos.hosts import Host, HostBusyError, HostTurns
from rsky_pipeline.repos.repo import RepoError

_WEB = "did:web:"


class Identities:
    """Resolves DIDs; the PLC directory and every did:web host have limits like a PDS."""

    def __init__(self, directory: Directory, plc_url: str, plc: HostTurns, web: HostTurns) -> None:
        self._directory = directory
        self._plc_url = plc_url
        self._plc = plc
        self._web = web

    @property
    def verdicts(self) -> list[RuleVerdict]:
        """What is wrong with the PLC directory."""
        return self._directory.verdicts

    def asked_just_now(self, did: str) -> bool:
        """Return whether a forced look-up would return what the last one did."""
        return self._directory.known(did, force=True) is not None

    def forget(self, did: str) -> None:
        """Have an account looked up anew."""
        self._directory.forget(did)

    async def document(self, did: str, force: bool = False) -> DidDocument:
        """Resolve a DID; `force` bypasses the cache. Raises RepoError and HostBusyError."""
        known = self._directory.known(did, force)
        if known is not None:
            return known
        if did.startswith(_WEB):
            try:
                turn = self._web.turn(self._directory.web_host(did).http_url())
            except IdentityNotFoundError as error:
                raise RepoError("permanent", "invalid_did", str(error)) from error
        else:
            turn = self._at_directory()
        async with turn as host:
            try:
                document = await self._directory.resolve(did, force)
            except IdentityNotFoundError as error:
                host.state.succeeded(None, trio.current_time())
                # Until then the answer would be the same, from the cache.
                pause = self._directory.forced_pause
                raise RepoError("permanent", "did_not_found", str(error), pause) from error
            except IdentityUnavailableError as error:
                cause = error.__cause__
                now = trio.current_time()
                if isinstance(cause, HttpError) and cause.status == 429:
                    pause = host.state.limited(cause.retry_after, cause.limit, now)
                    message = str(error)
                    raise RepoError("rate_limited", "rate_limited", message, pause) from error
                of_host = isinstance(cause, HttpError) and not error.of_account
                if of_host:
                    host.state.failed(str(error), now)
                text = str(error)
                raise RepoError("transient", "did_unavailable", text, of_host=of_host) from error
            host.state.succeeded(None, trio.current_time())
            return document

    @asynccontextmanager
    async def _at_directory(self) -> AsyncIterator[Host]:
        """Hold a turn at the directory; an outage is `rate_limited`, so no attempt counts."""
        try:
            async with self._plc.turn(self._plc_url) as host:
                yield host
        except HostBusyError as error:
            raise RepoError("rate_limited", "did_unavailable", str(error), error.seconds) from error
