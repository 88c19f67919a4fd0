"""Blocks accounts, hosts and collections, and lifts blocks with the repairs that follow.

`block` has this order: the blocks are committed and published, transactions that began before are
waited for, and only then are rows hidden or removed, so that none is written behind it. `lift` has
the other one: blocks are marked as lifted (no worker leaves anything out from then on), takedowns
are lifted, producers have had time to know it, and repos are queued to be fetched. The marks are
removed at last: a command that was killed is repeated.

Blocking, and not for use within a trio loop.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio
from prometheus_client import CollectorRegistry

from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.configuration.endpoints import Endpoint, parse_endpoint
from rsky_pipeline.configuration.selection import Selection, host_name
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.selection import (
    Block,
    add_accounts,
    add_blocks,
    forget_blocks,
    lift_blocks,
    list_blocks,
    load_selection,
    wait_for_writers,
)
from rsky_pipeline.indexer.accounts.actors import queue_handle_checks
from rsky_pipeline.indexer.accounts.purge import purge_records
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.network.http import HttpClient, HttpError
from rsky_pipeline.network.listing import Listed, Lister, list_repos
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.operations.backfill.adding import Adder
from rsky_pipeline.operations.erasure import erase
from rsky_pipeline.repos.fetch import open_fetcher
from rsky_pipeline.repos.hosts import HostBusyError
from rsky_pipeline.repos.identities import Identities
from rsky_pipeline.repos.repo import RepoError
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.names import REPO_BACKFILL
from rsky_pipeline.streams.selection import publish_selection

TAKEDOWN = "rsky-pipeline:block"  # our `takedownRef`, to be told from those of the AppView
TAKEN_UP_SECONDS = 10.0  # in which every ingester has read a change
LISTING_SECONDS = 600.0
PAGE_ACCOUNTS = 1_000
_LISTING_TRIES = 3
MAX_LISTED = 20  # hosts below one that is blocked with *.
LOOKUPS = 16  # at once

_TAKE_DOWN = """
UPDATE actor SET "takedownRef" = %s WHERE did = ANY(%b::text[]) AND "takedownRef" IS NULL
"""
_PUT_BACK = """
UPDATE actor SET "takedownRef" = NULL WHERE did = ANY(%b::text[]) AND "takedownRef" = %s
"""
_FORGET_TAKEDOWNS = """
DELETE FROM rsky_pipeline.account_takedown WHERE did = ANY(%b::text[]) AND ref = %s
"""
# Of a purge by a block: without it the repo may come back at the rev that it had.
_FORGET_PURGES = """
DELETE FROM rsky_pipeline.repo_floor WHERE did = ANY(%b::text[]) AND purged AND by_block
"""
_KNOWN = "SELECT did FROM actor WHERE did = ANY(%b::text[])"
_FETCHED_FROM = "SELECT did, host FROM rsky_pipeline.backfill_repo WHERE host LIKE %s"
_MEMBERS = "SELECT did FROM rsky_pipeline.blocked_account WHERE host = %s ORDER BY did"
_ACTORS = "SELECT did FROM actor WHERE did > %s ORDER BY did LIMIT %s"

Tell = Callable[[str], object]


@dataclass(slots=True)
class BlockReport:
    """What a command has done; `problems` are left to the operator."""

    changed: list[Block] = field(default_factory=list)
    unchanged: list[Block] = field(default_factory=list)
    accounts: int = 0  # whose rows were looked at, or whose repos were queued
    records: int = 0  # that were removed
    hidden: int = 0  # accounts that were taken down or put back
    queued: int = 0  # repos
    problems: list[str] = field(default_factory=list)


def publish(store: Store, group: str, database: Database) -> Selection:
    """Publish what is left out for the ingester, and return it."""
    selection = load_selection(database)
    publish_selection(store, group, selection)
    return selection


def block(
    database: Database, store: Store, settings: Settings, wanted: Sequence[Block],
    collections: Mapping[str, Collection], tell: Tell,
) -> BlockReport:  # fmt: skip
    """Add blocks, and do with the rows that are there as they say.

    May be repeated, after a kill too. Raises DatabaseError and the errors of Redis.
    """
    report, hosts = BlockReport(), dict[str, list[str]]()
    known = {(each.kind, each.subject): each for each in list_blocks(database)}
    for each in wanted:
        before = known.get((each.kind, each.subject))
        same = before is not None and not before.lifted and each.rows in {"keep", before.rows}
        (report.unchanged if same else report.changed).append(each)
    add_blocks(database, list(wanted))
    publish(store, settings.indexer_group, database)
    for each in wanted:
        if each.kind == "host":
            named = _named_by_host(database, settings, each.subject, report, tell)
            hosts[each.subject] = trio.run(
                _living_at, settings, each.subject, sorted(named), report, tell
            )
            add_accounts(database, each.subject, hosts[each.subject])
    tell("waiting for transactions that began before")
    if not wait_for_writers(database):
        report.problems.append("a transaction that began before is still open: repeat the command")
    for each in wanted:
        if each.kind == "collection":
            if each.rows == "purge":
                purge_collections(database, [each.subject], collections, report, tell)
            continue
        dids = [each.subject] if each.kind == "account" else hosts[each.subject]
        report.accounts += len(dids)
        if each.rows == "takedown":
            for page in _pages(dids):
                report.hidden += database.execute(_TAKE_DOWN, (TAKEDOWN, page))
        elif each.rows == "purge":
            for number, did in enumerate(dids):
                erase(database, did, collections, "", by_block=True)
                tell(f"{number + 1:,} of {len(dids):,} accounts of {each.subject} purged")
    return report


def lift(
    database: Database, store: Store, settings: Settings, wanted: Sequence[Block], tell: Tell,
    *, repair: bool = True,
) -> BlockReport:  # fmt: skip
    """Lift blocks and have the repos fetched that they concerned; `wanted` name kind and subject.

    Without `repair` nothing is fetched. May be repeated, after a kill too. Raises DatabaseError and
    the errors of Redis.
    """
    report = BlockReport()
    known = {(each.kind, each.subject): each for each in list_blocks(database)}
    for each in wanted:
        found = known.get((each.kind, each.subject))
        (report.unchanged if found is None else report.changed).append(found or each)
    if not report.changed:
        return report
    lift_blocks(database, report.changed)
    selection = publish(store, settings.indexer_group, database)
    named, everyone = list[str](), False
    for each in report.changed:
        if each.kind == "collection":
            everyone = True
            continue
        dids, touched = [each.subject], [each.subject]
        if each.kind == "host":
            touched = [did for (did,) in database.query(_MEMBERS, (each.subject,))]
            dids = sorted(_named_by_host(database, settings, each.subject, report, tell))
        # Others may be blocked by another block.
        named += (did for did in dids if selection.keeps(did) and did not in selection.queued)
        if each.rows == "purge":
            database.execute(_FORGET_PURGES, (touched,))
    named = list(dict.fromkeys(named))
    for page in _pages(named):
        report.hidden += database.execute(_PUT_BACK, (page, TAKEDOWN))
        database.execute(_FORGET_TAKEDOWNS, (page, TAKEDOWN))
        _look_at_handles(database, page)
    if repair:
        tell("waiting until every worker knows it")
        time.sleep(TAKEN_UP_SECONDS)
        adder = Adder(
            store, REPO_BACKFILL, settings.repo_high_water_mark, force=True, tell=tell
        )  # fmt: skip
        adder.add(_everybody(database) if everyone else named)
        report.queued = adder.added.queued
        report.accounts = report.queued + adder.added.already_queued
    with database.transaction() as tx:
        forget_blocks(tx, report.changed)
    return report


def purge_collections(
    database: Database, subjects: Sequence[str], collections: Mapping[str, Collection],
    report: BlockReport, tell: Tell,
) -> None:  # fmt: skip
    """Remove the records of collections, and all rows made of them."""
    for did in _everybody(database):
        removed = purge_records(database, did, collections, subjects)
        report.accounts += bool(removed)
        report.records += removed
        if removed:
            tell(f"{report.records:,} records of {report.accounts:,} accounts removed")


def _named_by_host(
    database: Database, settings: Settings, host: str, report: BlockReport, tell: Tell
) -> set[str]:
    """Return accounts that a host lists, and those that were fetched from it or blocked with it.

    It may list accounts that live elsewhere, and some may have left it since.
    """
    only = Selection(hosts=frozenset((host,)))
    rows = database.query(_FETCHED_FROM, (f"%{host}%",))
    fetched = {did: url for did, url in rows if not only.keeps(host=host_name(url))}
    found = {did for (did,) in database.query(_MEMBERS, (host,))}.union(fetched)
    urls = sorted(set(fetched.values()))[:MAX_LISTED]
    if not urls and not host.startswith("."):
        urls = [parse_endpoint(host).http_url()]
    for url in urls:
        try:
            listed = trio.run(_listed, settings, parse_endpoint(url), tell)
        except (HttpError, trio.TooSlowError) as error:
            reason = str(error) or "it takes too long"
            report.problems.append(
                f"{url} does not list its repos ({reason}): accounts that were never fetched from "
                "it are not known"
            )
        else:
            found.update(listed)
    return found


async def _listed(settings: Settings, endpoint: Endpoint, tell: Tell) -> list[str]:
    found: list[str] = []
    with trio.fail_after(LISTING_SECONDS):
        async with HttpClient(
            allow_private=settings.allow_private_hosts, proxy=settings.proxy
        ) as http:
            async for item in Lister(partial(list_repos, http, endpoint), tries=_LISTING_TRIES):
                if isinstance(item, Listed):
                    found += [repo.did for repo in item.repos]
                    tell(f"{len(found):,} accounts listed by {endpoint.key}")
    return found


async def _living_at(
    settings: Settings, host: str, dids: Sequence[str], report: BlockReport, tell: Tell
) -> list[str]:
    """Return those accounts whose DID documents name the host: nobody else's rows are touched."""
    only = Selection(hosts=frozenset((host,)))
    found: list[str] = []
    unknown, done, queue = 0, 0, iter(dids)

    async def look_up_some(identities: Identities) -> None:
        nonlocal unknown, done
        for did in queue:
            document: DidDocument | None = None
            while document is None:
                try:
                    document = await identities.document(did)
                except HostBusyError as busy:
                    if busy.problem:
                        break
                    await trio.sleep(max(busy.seconds, 0.1))
                except RepoError:
                    break
            done += 1
            if document is None:
                unknown += 1
            elif not only.keeps(host=host_name(document.pds)):
                found.append(did)
            tell(f"{done:,} of {len(dids):,} accounts looked up")

    metrics = BackfillerMetrics(CollectorRegistry())
    async with open_fetcher(settings, metrics) as fetcher, trio.open_nursery() as nursery:
        for _ in range(LOOKUPS):
            nursery.start_soon(look_up_some, fetcher.identities)
    if unknown:
        report.problems.append(f"{unknown:,} accounts cannot be looked up: their rows stay")
    return sorted(found)


def _everybody(database: Database) -> Iterator[str]:
    after = ""
    while page := database.query(_ACTORS, (after, PAGE_ACCOUNTS)):
        after = page[-1][0]
        yield from (did for (did,) in page)


def _look_at_handles(database: Database, dids: Sequence[str]) -> None:
    """Have handles looked up: identity events were left out."""
    with database.transaction() as tx:
        known = [did for (did,) in tx.query(_KNOWN, (list(dids),))]
        queue_handle_checks(tx, dict.fromkeys(known, True))


def _pages(dids: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(dids), PAGE_ACCOUNTS):
        yield list(dids[start : start + PAGE_ACCOUNTS])
