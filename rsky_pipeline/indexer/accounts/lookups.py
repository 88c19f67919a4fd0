"""Connects the look-ups of accounts to the network: their handles, and whether they exist."""

from collections.abc import Callable, Mapping

import trio

from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.indexer.accounts.checks import LookupUnknownError
from rsky_pipeline.indexer.accounts.deletions import DeletionChecks, Hosted
from rsky_pipeline.indexer.accounts.handles import HandleChecks
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.network.directory import (
    Directory,
    IdentityNotFoundError,
    IdentityUnavailableError,
)
from rsky_pipeline.network.handles import Handles, HandleUnavailableError
from rsky_pipeline.network.http import HttpClient
from rsky_pipeline.network.plc_export import PlcExport
from rsky_pipeline.network.repositories import RepoUnavailableError, latest_rev
from rsky_pipeline.observability.indexer import IndexerMetrics
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.errors import StoreError
from rsky_pipeline.streams.identities import SharedIdentities

_GONE = frozenset({"RepoNotFound", "RepoDeleted"})
# A host's errors for an account that it keeps and does not serve, and the status to store.
_INACTIVE = {
    "RepoDeactivated": "deactivated",
    "RepoSuspended": "suspended",
    "RepoTakendown": "takendown",
    "RepoInactive": "deactivated",
}


async def look_up_accounts(
    settings: Settings,
    worker: str,
    metrics: IndexerMetrics,
    collections: Mapping[str, Collection],
    open_database: Callable[[], Database],
    is_busy: Callable[[], bool],
    store_failed: Callable[[StoreError], object],
) -> None:
    """Look up handles and deletions until cancelled; `worker` is the worker's lasting name.

    `is_busy` returns whether events wait to be indexed.
    """
    private = settings.allow_private_hosts
    boundary = Boundary(metrics.internal_error)
    shared = SharedIdentities(settings.redis_url or "", worker, store_failed)
    async with HttpClient(
        allow_private=private, silence_seconds=10.0, boundary=boundary, proxy=settings.proxy
    ) as http:
        directory = Directory(
            http, settings.plc_url, allow_private=private,
            fresh_seconds=settings.identity_cache_seconds, shared=shared,
        )  # fmt: skip
        handles = Handles(http, resolver_url=settings.handle_resolver_url, allow_private=private)
        lookup = Lookup(http, directory, handles)
        checks = HandleChecks(
            worker,
            open_database,
            lookup.find_document,
            lookup.find_did,
            metrics,
            settings.handle_lookups,
            is_busy,
        )
        deletions = DeletionChecks(open_database, lookup.find_host, collections, metrics)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(shared.run)
                nursery.start_soon(checks.run)
                nursery.start_soon(deletions.run)
                if settings.follow_plc_export:
                    export = PlcExport(http, settings.plc_url, directory.forget)
                    nursery.start_soon(export.run)
        finally:
            checks.close()
            deletions.close()
            shared.close()


class Lookup:
    """Asks the network; every method raise LookupUnknownError when nobody could answer."""

    def __init__(self, http: HttpClient, directory: Directory, handles: Handles) -> None:
        self._http = http
        self._directory = directory
        self._handles = handles

    async def find_document(self, did: str, forced: bool) -> DidDocument | None:
        """Return the document of a DID, None if there is none; a forced one is fetched anew."""
        if forced:  # an event announced a change, maybe a moment after the last look-up
            self._directory.forget(did)
        try:
            return await self._directory.resolve(did)
        except IdentityNotFoundError:
            return None
        except IdentityUnavailableError as error:
            raise LookupUnknownError(str(error)) from error

    async def find_did(self, handle: str) -> str | None:
        """Return the DID that a handle belongs to."""
        try:
            return await self._handles.resolve(handle)
        except HandleUnavailableError as error:
            raise LookupUnknownError(str(error)) from error

    async def find_host(self, did: str) -> Hosted | None:
        """Return how the account's host has it, None if the account is gone."""
        document = await self.find_document(did, forced=True)
        if document is None or document.pds is None:
            return None
        try:
            await latest_rev(self._http, document.pds, did)
        except RepoUnavailableError as error:
            if error.code in _GONE:
                return None
            if error.code in _INACTIVE:
                return Hosted(_INACTIVE[error.code])
            raise LookupUnknownError(str(error)) from error
        return Hosted(None)
