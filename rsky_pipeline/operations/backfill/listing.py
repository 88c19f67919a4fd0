"""Queueing the accounts that a host lists, each page before the next is asked for."""

from collections.abc import Callable
from functools import partial

import trio

from rsky_pipeline.configuration.endpoints import Endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.network.http import HttpClient
from rsky_pipeline.network.listing import (
    FetchPage,
    Listed,
    Lister,
    Unlistable,
    list_repos,
    list_repos_by_collection,
)
from rsky_pipeline.operations.backfill.adding import Adder
from rsky_pipeline.streams.append import read_cursor
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.repo_job import RepoJob

_TRIES = 5


def cursor_key(stream: str, endpoint: Endpoint, collection: str | None) -> str:
    """Return the key that keeps how far a listing was queued."""
    kind = f"collection:{collection}" if collection else "pds"
    return f"rsky_pipeline:backfill_add:{stream}:{kind}:{endpoint.key}"


def add_listed(
    adder: Adder, store: Store, settings: Settings, endpoint: Endpoint, key: str,
    collection: str | None, report: Callable[[Unlistable], object],
) -> None:  # fmt: skip
    """Queue all accounts of a PDS, or those of a relay that have records of a collection.

    Continues behind the stored cursor, and forgets it at the end. `report` is called with each
    range that the host cannot list. Raises HttpError when the host fails again and again, and
    the errors of `Adder.add_page`.
    """

    async def queue() -> None:
        async with HttpClient(allow_private=settings.allow_private_hosts) as http:
            fetch: FetchPage
            if collection is None:
                fetch = partial(list_repos, http, endpoint)
            else:
                fetch = partial(list_repos_by_collection, http, collection, endpoint)
            host, cursor = endpoint.http_url(), read_cursor(store, key) or None
            async for item in Lister(fetch, cursor, tries=_TRIES):
                jobs = list[RepoJob]()
                if isinstance(item, Listed):
                    jobs = [
                        RepoJob(
                            repo.did, host, repo.rev, repo.status, repo.active, reason=adder.reason
                        )
                        for repo in item.repos
                    ]
                else:
                    report(item)
                # Nothing else runs here: a blocking call holds nobody up.
                adder.add_page(jobs, key, item.following or "")

    trio.run(queue)
