"""Listing and repairing gaps by hand."""

from collections.abc import Sequence
from contextlib import closing
from functools import partial

from rsky_pipeline.configuration.endpoints import Endpoint, parse_endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.ingester.listing.gap_repair import (
    GapRepair,
    GapRow,
    list_gaps,
    move_gaps,
    reopen,
    repair_marks,
)
from rsky_pipeline.network.http import HttpClient
from rsky_pipeline.network.listing import list_repos
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.connection import Store


class UnknownGapError(Exception):
    """A gap that does not exist."""


def all_gaps(store: Store, settings: Settings) -> list[GapRow]:
    """Return all gaps, the newest first, those that the ingester noted just now included."""
    connect = _connecting(settings)
    move_gaps(store, connect)
    with connect() as database:
        return list_gaps(database)


async def repair_gaps(store: Store, settings: Settings, ids: Sequence[str]) -> list[GapRow]:
    """Repair these gaps again from the start, or without ids all that are not; return them.

    That may be none. Raises UnknownGapError, and the errors of the stores.
    """
    wanted = list(ids)
    known = {gap.id: gap for gap in all_gaps(store, settings)}
    unknown = [gap for gap in wanted if gap not in known]
    if unknown:
        raise UnknownGapError(f"there is no gap {unknown[0]}: see `rsky-pipeline gaps list`")
    if not wanted:
        wanted = [gap.id for gap in known.values() if gap.status in {"open", "failed"}]
    if not wanted:
        return []
    connect = _connecting(settings)
    with connect() as database:
        reopen(database, wanted)
    relays: dict[str, Endpoint] = {relay.key: relay for relay in settings.relays}
    hosts = [relays.get(known[gap].host) or parse_endpoint(known[gap].host) for gap in wanted]
    redis, postgres = Link(lambda: store, purpose="gaps"), Link(connect, purpose="gaps")
    with closing(postgres):
        async with HttpClient(
            allow_private=settings.allow_private_hosts, proxy=settings.proxy
        ) as http:
            fetch = partial(list_repos, http)
            repair = GapRepair(redis, postgres, connect, fetch, repair_marks(settings))
            await repair.repair_all(list(dict.fromkeys(hosts)))
    return [gap for gap in all_gaps(store, settings) if gap.id in set(wanted)]


def _connecting(settings: Settings) -> "partial[Database]":
    return partial(
        Database.connect, str(settings.database_url), schema=settings.database_schema, name="gaps"
    )
