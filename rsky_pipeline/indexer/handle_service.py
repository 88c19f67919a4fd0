"""Connects handle checks to the network: the DID directory and the resolver of handles."""

from collections.abc import Callable

from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.indexer.handles import HandleChecks, Unknown
from rsky_pipeline.network.directory import Directory, IdentityNotFound, IdentityUnavailable
from rsky_pipeline.network.handles import Handles, HandleUnavailable
from rsky_pipeline.network.http import HttpClient
from rsky_pipeline.observability.indexer import IndexerMetrics


async def look_up_handles(
    settings: Settings,
    worker: str,
    metrics: IndexerMetrics,
    open_database: Callable[[], Database],
) -> None:
    """Look up handles until cancelled; `worker` is the worker's lasting name."""
    private = settings.allow_private_hosts
    async with HttpClient(allow_private=private, silence_seconds=10.0) as http:
        directory = Directory(http, settings.plc_url, allow_private=private)
        handles = Handles(http, resolver_url=settings.handle_resolver_url, allow_private=private)

        async def find_document(did: str, forced: bool) -> DidDocument | None:
            if forced:  # an event said that it changed, maybe a moment after it was looked up
                directory.forget(did)
            try:
                return await directory.resolve(did)
            except IdentityNotFound:
                return None
            except IdentityUnavailable as error:
                raise Unknown(str(error)) from error

        async def find_did(handle: str) -> str | None:
            try:
                return await handles.resolve(handle)
            except HandleUnavailable as error:
                raise Unknown(str(error)) from error

        checks = HandleChecks(worker, open_database, find_document, find_did, metrics)
        try:
            await checks.run()
        finally:
            checks.close()
