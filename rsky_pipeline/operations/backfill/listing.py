"""Accounts that a host lists, page by page, each page queued before the next is asked for."""

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from rsky_pipeline.configuration.endpoints import Endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.network.http import HttpClient, HttpFailure
from rsky_pipeline.network.repositories import Page, list_repos, list_repos_by_collection
from rsky_pipeline.operations.backfill.adding import Adder
from rsky_pipeline.streams.append import read_cursor
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.event import RepoJob

PAGE_SIZE = 1_000
_TRIES = 5
_MAX_PAUSE = 60.0

Fetch = Callable[[str | None], Awaitable[Page]]


def cursor_key(stream: str, endpoint: Endpoint, collection: str | None) -> str:
    """Return the key that keeps how far a listing was queued."""
    kind = f"collection:{collection}" if collection else "pds"
    return f"rsky_pipeline:backfill_add:{stream}:{kind}:{endpoint.key}"


def add_listed(
    adder: Adder, store: Store, settings: Settings, endpoint: Endpoint, key: str,
    collection: str | None,
) -> None:  # fmt: skip
    """Queue all accounts of a PDS, or those of a relay that have records of a collection.

    Goes on behind the stored cursor, and forgets it at the end. Raises HttpFailure when the host
    fails again and again, and what `Adder.add_page` raises.
    """
    trio.run(_add_listed, adder, store, settings, endpoint, key, collection)


async def _add_listed(
    adder: Adder, store: Store, settings: Settings, endpoint: Endpoint, key: str,
    collection: str | None,
) -> None:  # fmt: skip
    async with HttpClient(allow_private=settings.allow_private_hosts) as http:
        fetch: Fetch
        if collection is None:
            fetch = lambda cursor: list_repos(http, endpoint, cursor, PAGE_SIZE)  # noqa: E731
        else:
            listing = partial(list_repos_by_collection, http, collection, endpoint)
            fetch = lambda cursor: listing(cursor, PAGE_SIZE)  # noqa: E731
        cursor = read_cursor(store, key) or None
        while True:
            page = await _fetched(fetch, cursor)
            following = page.cursor if page.cursor != cursor else None
            host = endpoint.http_url()
            jobs = [
                RepoJob(each.did, host, each.rev, each.status, each.active, reason=adder.reason)
                for each in page.repos
            ]
            # Nothing else runs here: a blocking call holds nobody up.
            adder.add_page(jobs, key, following or "")
            if following is None:
                return
            cursor = following


async def _fetched(fetch: Fetch, cursor: str | None) -> Page:
    for attempt in range(1, _TRIES + 1):
        try:
            return await fetch(cursor)
        except HttpFailure as error:
            if attempt == _TRIES:
                raise
            await trio.sleep(min(error.retry_after or attempt, _MAX_PAUSE))
    raise AssertionError("not reached")
