"""Gap repair: list all repos of the relay, and queue those whose rev is above the known one.

A hosting status in the list that differs from the stored one becomes an account event, with number
and time of right before the first event after the gap, so that those of the stream outrank it.

The ingester notes a gap in Redis with the events that follow it, so that it needs no database to
go on; from there gaps are moved to PostgreSQL when it can be reached, which has the progress of
their repair.
"""

import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import orjson
import trio

from rsky_pipeline.atproto.datetimes import format_utc
from rsky_pipeline.atproto.syntax import is_tid, tid_microseconds, tid_number
from rsky_pipeline.configuration.endpoints import Endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.isolation import apply_isolated
from rsky_pipeline.database.texts import storable
from rsky_pipeline.health.rules import GAP_REPAIR, RuleVerdict, judged
from rsky_pipeline.ingester.commits.states import (
    is_inactive,
    is_state,
    repo_digest,
    rev_of,
    state_key,
)
from rsky_pipeline.ingester.listing.enumeration import add_range, new_range
from rsky_pipeline.ingester.sequence import timestamp
from rsky_pipeline.network.http import HttpError
from rsky_pipeline.network.listing import Listed, ListedRepo, Lister, Page, Unlistable
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.errors import StoreError, described
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.append import Entry, append, read_fields
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.dead_letters import add_dead_letter
from rsky_pipeline.streams.event import EVENT_FIELD, AccountEvent, encode_event
from rsky_pipeline.streams.gap import CURSOR_REFUSED, STORE_LOST
from rsky_pipeline.streams.marks import MARGIN_SECONDS
from rsky_pipeline.streams.names import FIREHOSE_LIVE, GAPS, REPO_BACKFILL_HIGH
from rsky_pipeline.streams.repo_job import REPO_FIELD, FetchReason, RepoJob, encode_repo_job

_log = logging.getLogger(__name__)
Connection = TypeVar("Connection", Store, Database)
Result = TypeVar("Result")
_CHECK_SECONDS = 5.0
_FULL_SECONDS = 1.0
_PAGE_GAPS = 100
# A repair stores its progress after every page; one without progress for so long was interrupted.
_STALE = "interval '10 minutes'"
_COLUMNS = (
    "id, host, kind, from_seq, to_seq, from_time, to_time, detected_at, status, repos_listed, "
    "repos_queued, list_cursor, error"
)
_TRIES = 5  # in a row at a host that serves nothing, before the repair is noted as failed

# The page of an endpoint at a cursor, of at most so many repos. Raises HttpError.
FetchFrom = Callable[[Endpoint, str | None, int], Awaitable[Page]]


@dataclass(frozen=True, slots=True)
class GapRow:
    """A gap as it is stored; `status` is open, repairing, repaired or failed."""

    id: str
    host: str
    kind: str
    from_seq: int | None
    to_seq: int | None
    from_time: str | None
    to_time: str | None
    detected_at: datetime
    status: str
    repos_listed: int
    repos_queued: int
    list_cursor: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class GapRepair:
    """Repairs gaps: with both stores, the listing of a relay, and the marks of the streams.

    A `patient` one waits for a store that does not answer; another raises its error.
    """

    redis: Link[Store]
    database: Link[Database]
    connect: Callable[[], Database]
    fetch: FetchFrom
    high_water_marks: Mapping[str, int]
    patient: bool = False
    boundary: Boundary = field(default_factory=Boundary)
    enumerates: bool = False  # every repo is to be in the database, not only live ones
    verdicts: list[RuleVerdict] = field(default_factory=list)  # on failed repairs, by `watch`

    async def watch(self, relays: Sequence[Endpoint], *, repair: bool) -> None:
        """Move gaps to PostgreSQL, and repair them if asked to, until cancelled."""
        hosts = [endpoint.key for endpoint in relays]
        while True:
            try:
                # `gaps list` moves gaps as well: what is there counts, not what was moved here.
                await self.redis.attempt(partial(move_gaps, connect=self.connect))
                if repair and await self.database.attempt(partial(is_waiting, hosts=hosts)):
                    await self.repair_all(relays)
                failed = await self.database.attempt(partial(failed_repairs, hosts=hosts))
                if failed is not None:
                    self.verdicts[:] = failed
            except Exception as error:  # noqa: BLE001 - see runtime.boundary
                self.boundary.caught(error, "gap")
            await trio.sleep(_CHECK_SECONDS)

    async def repair_all(self, relays: Sequence[Endpoint]) -> int:
        """Repair every open gap of these relays; return how many were repaired.

        Raises the errors of the stores; the failure of a relay is stored with its gap.
        """
        endpoints: dict[str, Endpoint] = {endpoint.key: endpoint for endpoint in relays}
        take, repaired = partial(claim, hosts=list(endpoints)), 0
        while (gap := await self._on(self.database, take)) is not None:
            repaired += await self._repair(gap, endpoints[gap.host])
        return repaired

    async def _on(self, link: Link[Connection], action: Callable[[Connection], Result]) -> Result:
        return await (link.retry(action) if self.patient else link.call(action))

    async def _repair(self, gap: GapRow, endpoint: Endpoint) -> bool:
        """Go on with a repair where it was interrupted; tell whether the gap is repaired."""
        cursor, listed, queued, error = gap.list_cursor, gap.repos_listed, gap.repos_queued, None
        _log.info("repairing a gap", extra={"host": gap.host, "kind": gap.kind, "gap": gap.id})
        status = "repairing"
        history = await self._on(self.redis, Store.history)

        async def write(status: str) -> None:
            progress = partial(note, gap=gap, status=status, listed=listed, queued=queued,
                               cursor=cursor, error=error)  # fmt: skip
            await self._on(self.database, progress)

        try:
            async for item in Lister(partial(self.fetch, endpoint), cursor, tries=_TRIES):
                cursor = item.following
                status = "repaired" if cursor is None else "repairing"
                if isinstance(item, Listed):
                    behind = await self._behind(gap, item.repos)
                    news = await self._on(
                        self.database,
                        partial(_status_news, repos=item.repos, gap=gap),
                    )
                    await self._queue(endpoint, behind, news)
                    if await self._on(self.redis, Store.history) != history:
                        # The database would note what a promoted replica may never have received.
                        cursor, listed, queued = None, 0, 0
                        await write("open")
                        _log.warning("Redis failed over: a gap's repair begins anew",
                                     extra={"host": gap.host, "gap": gap.id})  # fmt: skip
                        return False
                    listed, queued = listed + len(item.repos), queued + len(behind)
                else:
                    error = await self._step_over(gap, item)
                await write(status)
        except StoreError:
            raise
        except Exception as failure:  # noqa: BLE001 - see runtime.boundary
            if not isinstance(failure, HttpError):
                self.boundary.caught(failure, "listing", host=gap.host)
            error = described(failure)[:500]
            await write("failed")
            _log.error("gap repair failed: the relay does not list its repos",
                       extra={"host": gap.host, "gap": gap.id, "error": error})  # fmt: skip
            return False
        extra = {"host": gap.host, "gap": gap.id, "listed": listed, "queued": queued}
        _log.info("gap repaired", extra=extra)
        return True

    async def _step_over(self, gap: GapRow, item: Unlistable) -> str:
        """Store an unlistable range, which the enumeration lists again; return a note of it."""
        found = new_range(item.range, item.problem, time.time())
        await self._on(self.redis, partial(add_range, host=gap.host, found=found))
        _log.error("host cannot list a range of repos; gap repair continues behind it",
                   extra={"host": gap.host, "gap": gap.id, "from_cursor": item.range.start,
                          "to_cursor": item.range.end, "problem": item.problem})  # fmt: skip
        return f"repos with cursors {item.range} cannot be listed: {item.problem}"[:500]

    async def _behind(self, gap: GapRow, repos: Sequence[ListedRepo]) -> list[ListedRepo]:
        """Return the repos whose listed rev is above the live and the indexed one.

        Where a store lost something the live one does not count, since its commit may be lost. Nor
        does the indexed one tell anything of a repo that has changed since: its newest commit may
        have been applied after the loss, and those before it are gone. And all repos have to be
        stored as a whole, where all of them are.
        """
        lost = gap.kind in STORE_LOST
        since = timestamp(gap.from_time or "") if lost else None
        changed_since = math.inf if since is None else (since - MARGIN_SECONDS) * 1e6
        dids = [repo.did for repo in repos]
        revs = await self._on(self.database, partial(stored_revs, dids=dids))
        where = [state_key(repo_digest(did)) for did in dids]
        states = await self._on(self.redis, partial(read_fields, where=where))
        whole = set(dids)
        if lost and self.enumerates:
            whole = await self._on(self.database, partial(stored_wholes, dids=dids))
        behind = []
        for repo, state in zip(repos, states, strict=True):
            live = rev_of(state) if is_state(state) and not lost else 0
            indexed = revs.get(repo.did, "")
            known = max(live, tid_number(indexed) if is_tid(indexed) else 0)
            returned = is_state(state) and is_inactive(state)
            further = (
                not is_tid(repo.rev)
                or tid_number(repo.rev) > known
                or tid_microseconds(repo.rev) >= changed_since
            )
            if repo.active and (further or returned or repo.did not in whole):
                behind.append(repo)
        return behind

    async def _queue(
        self,
        endpoint: Endpoint,
        repos: Sequence[ListedRepo],
        news: Sequence[Entry],
    ) -> None:
        host = endpoint.http_url()
        entries = [
            Entry(
                REPO_BACKFILL_HIGH, REPO_FIELD,
                encode_repo_job(
                    RepoJob(repo.did, host, repo.rev, repo.status, True, reason=FetchReason.GAP)
                ),
            )
            for repo in repos
        ]  # fmt: skip
        entries += news
        action = partial(append, entries=entries, high_water_marks=self.high_water_marks)
        while entries:
            if (await self._on(self.redis, action)).status != "full":
                return
            await trio.sleep(_FULL_SECONDS)


def repair_marks(settings: Settings) -> dict[str, int]:
    """Return the high-water marks of the streams that repairs append to."""
    return {
        REPO_BACKFILL_HIGH: settings.repo_high_water_mark,
        FIREHOSE_LIVE: settings.live_high_water_mark,
    }


def _news_time(gap: GapRow) -> str:
    """Return the time of the first event after a gap, or when it was noticed if that is earlier."""
    noticed = gap.detected_at.timestamp()
    first = timestamp(gap.to_time or "")
    moment = noticed if first is None else min(first, noticed)
    return format_utc(datetime.fromtimestamp(moment, UTC))


def _status_news(database: Database, repos: Sequence[ListedRepo], gap: GapRow) -> list[Entry]:
    """Return events of the accounts whose stored status is not the listed one.

    They are placed right before the first event after the gap, by its number or else by its time.
    """
    stored = stored_statuses(database, [repo.did for repo in repos])
    # The numbers after a refused cursor order nothing before it: the time decides there.
    relay = gap.host if gap.to_seq and gap.kind != CURSOR_REFUSED else ""
    seq, time, news = max(0, (gap.to_seq or 0) - 1), _news_time(gap), []
    for repo in repos:
        if repo.did not in stored or (stored[repo.did] is None) == repo.active:
            continue
        event = AccountEvent(seq, time, repo.did, repo.active, repo.status, relay)
        news.append(Entry(FIREHOSE_LIVE, EVENT_FIELD, encode_event(event)))
    if news:
        extra = {"accounts": len(news)}
        _log.info("queued account events for changed hosting statuses", extra=extra)
    return news


def move_gaps(store: Store, connect: Callable[[], Database]) -> int:
    """Move gaps from Redis to PostgreSQL; return their number.

    Raises the errors of both. A gap is removed from Redis only when PostgreSQL has it; one that
    cannot be read, or that PostgreSQL refuses, becomes a dead letter.
    """
    moved = 0
    while found := store.call("XRANGE", GAPS, "-", "+", "COUNT", _PAGE_GAPS):
        with connect() as database:
            refused = apply_isolated(found, partial(_insert_gaps, database))
        for culprit in refused:
            (entry_id, fields), why = culprit.entry, (culprit.reason, culprit.message)
            add_dead_letter(store, GAPS, entry_id, fields, *why)
            _log.error("gap cannot be stored: see `rsky-pipeline dlq show`",
                       extra={"gap": entry_id, "reason": culprit.message})  # fmt: skip
        left = {culprit.entry[0] for culprit in refused}
        if stored := [entry_id for entry_id, _ in found if entry_id not in left]:
            store.call("XDEL", GAPS, *stored)
        moved += len(stored)
    return moved


def _insert_gaps(database: Database, entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> None:
    with database.transaction() as tx:
        for entry_id, fields in entries:
            gap: Mapping[str, Any] = orjson.loads(fields[1])
            tx.execute(
                "INSERT INTO rsky_pipeline.gap (id, host, kind, from_seq, to_seq, from_time, "
                "to_time, detected_at) VALUES (%s, %s, %s, %s, %s, %s, %s, to_timestamp(%s)) "
                "ON CONFLICT (id) DO NOTHING",
                [
                    entry_id.decode(), gap["host"], gap["kind"], _bigint(gap["from_seq"]),
                    _bigint(gap["to_seq"]), gap["from_time"], gap["to_time"],
                    int(entry_id.split(b"-")[0]) / 1_000,
                ],
            )  # fmt: skip


def _bigint(seq: int | None) -> int | None:
    """Bound a sequence number, which may be any, to the range of the column."""
    return None if seq is None else min(seq, 2**63 - 1)


def list_gaps(database: Database) -> list[GapRow]:
    """Return all gaps, the newest first."""
    rows = database.query(f"SELECT {_COLUMNS} FROM rsky_pipeline.gap ORDER BY detected_at DESC")
    return [GapRow(*row) for row in rows]


def failed_repairs(database: Database, hosts: Sequence[str]) -> list[RuleVerdict]:
    """Return a verdict on each of these hosts with gaps whose repair has failed."""
    rows = database.query(
        "SELECT host, count(*), min(id), min(error) FROM rsky_pipeline.gap "
        "WHERE status = 'failed' AND host = ANY(%s) GROUP BY host ORDER BY host",
        [list(hosts)],
    )
    return [
        judged(GAP_REPAIR, host, count, f"{count} failed, the first is {first}: {error}")
        for host, count, first, error in rows
    ]


def reopen(database: Database, ids: Sequence[str]) -> int:
    """Have gaps repaired again from the start; return how many there are of those ids."""
    return database.execute(
        "UPDATE rsky_pipeline.gap SET status = 'open', list_cursor = NULL, error = NULL, "
        "repos_listed = 0, repos_queued = 0, updated_at = now() WHERE id = ANY(%s)",
        [list(ids)],
    )


_WAITING = (
    "SELECT id FROM rsky_pipeline.gap WHERE host = ANY(%s) AND (status = 'open'"
    f" OR (status IN ('repairing', 'failed') AND updated_at < now() - {_STALE}))"
    " ORDER BY detected_at LIMIT 1"
)


def is_waiting(database: Database, hosts: Sequence[str]) -> bool:
    """Return whether a gap of these hosts waits for a repair, as `claim` takes them."""
    return bool(database.query(_WAITING, [list(hosts)]))


def claim(database: Database, hosts: Sequence[str]) -> GapRow | None:
    """Take one gap of these hosts to repair, or one whose repair was interrupted."""
    rows = database.query(
        "UPDATE rsky_pipeline.gap SET status = 'repairing', updated_at = now() WHERE id = ("
        f"{_WAITING} FOR UPDATE SKIP LOCKED)"
        f" RETURNING {_COLUMNS}",
        [list(hosts)],
    )
    return GapRow(*rows[0]) if rows else None


def note(
    database: Database,
    gap: GapRow,
    status: str,
    *,
    listed: int,
    queued: int,
    cursor: str | None,
    error: str | None = None,
) -> None:
    """Note how far the repair of a gap is.

    A cursor that cannot be stored as the host gave it is left out: a repair that is interrupted
    then begins anew.
    """
    if cursor is not None and storable(cursor) != cursor:
        cursor = None
    database.execute(
        "UPDATE rsky_pipeline.gap SET status = %s, repos_listed = %s, repos_queued = %s, "
        "list_cursor = %s, error = %s, updated_at = now() WHERE id = %s",
        [status, listed, queued, cursor, None if error is None else storable(error), gap.id],
    )


def stored_revs(database: Database, dids: Sequence[str]) -> dict[str, str]:
    """Return the rev that the index has of each repo, where it has one."""
    rows = database.query(
        'SELECT did, "repoRev" FROM actor_sync WHERE did = ANY(%s) AND "repoRev" IS NOT NULL',
        [list(dids)],
    )
    return {row[0]: row[1] for row in rows}


def stored_wholes(database: Database, dids: Sequence[str]) -> set[str]:
    """Return the repos that were stored as a whole."""
    rows = database.query(
        "SELECT did FROM rsky_pipeline.repo_floor WHERE did = ANY(%s) AND NOT purged", [list(dids)]
    )
    return {row[0] for row in rows}


def stored_statuses(database: Database, dids: Sequence[str]) -> dict[str, str | None]:
    """Return the hosting status that is stored of each account; None for an active one."""
    rows = database.query(
        'SELECT did, "upstreamStatus" FROM actor WHERE did = ANY(%s)', [list(dids)]
    )
    return {row[0]: row[1] for row in rows}
