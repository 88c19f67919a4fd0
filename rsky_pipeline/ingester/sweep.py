"""Repairing a gap: list all repos of the relay, and fetch those that are further than we are.

What the list says of an account's hosting status, and is not what is stored, becomes an account
event of the time of the first event after the gap: later news of the account count more, since they
come by the stream.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import trio

from rsky_pipeline.atproto.datetimes import format_utc
from rsky_pipeline.atproto.syntax import is_tid, tid_number
from rsky_pipeline.configuration.endpoints import Endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.ingester.gap_table import (
    GapRow,
    claim,
    move_gaps,
    note,
    stored_revs,
    stored_statuses,
)
from rsky_pipeline.ingester.repo_state import (
    is_inactive,
    is_state,
    repo_digest,
    rev_of,
    state_key,
)
from rsky_pipeline.ingester.times import timestamp
from rsky_pipeline.network.http import HttpFailure
from rsky_pipeline.network.repositories import ListedRepo, Page
from rsky_pipeline.runtime.threads import StoreThread
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.event import (
    EVENT_FIELD,
    REPO_FIELD,
    AccountEvent,
    RepoJob,
    encode_event,
    encode_repo_job,
)
from rsky_pipeline.streams.fields import read_fields
from rsky_pipeline.streams.names import FIREHOSE_LIVE, REPO_BACKFILL_HIGH

_log = logging.getLogger(__name__)
_CHECK_SECONDS = 5.0
_LOOK_SECONDS = 600.0  # for gaps whose repair failed or was interrupted
_FULL_SECONDS = 1.0

Listing = Callable[[Endpoint, str | None], Awaitable[Page]]


@dataclass(frozen=True, slots=True)
class Sweeper:
    """What sweeps need: both stores, the listing of a relay, and the mark of the queue."""

    store: Store
    connect: Callable[[], Database]
    listing: Listing
    high_water_marks: Mapping[str, int]

    async def watch(self, relays: Sequence[Endpoint], *, repair: bool) -> None:
        """Move gaps to PostgreSQL, and repair them if asked to, until cancelled."""
        thread, look_at = StoreThread(), trio.current_time()
        while True:
            try:
                moved = await thread.call(partial(move_gaps, self.store, self.connect))
                if repair and (moved or trio.current_time() >= look_at):
                    await self.repair_all(relays)
                    look_at = trio.current_time() + _LOOK_SECONDS
            except (DatabaseError, StoreUnavailable, StoreRejected) as error:
                _log.warning("gaps are looked after later", extra={"error": str(error)})
            await trio.sleep(_CHECK_SECONDS)

    async def repair_all(self, relays: Sequence[Endpoint]) -> int:
        """Repair every open gap of these relays; return how many were repaired.

        Raises the errors of the stores; what a relay does wrong is noted with the gap.
        """
        thread = StoreThread()
        endpoints: dict[str, Endpoint] = {endpoint.key: endpoint for endpoint in relays}
        repaired = 0
        database = await thread.call(self.connect)
        try:
            while (gap := await thread.call(claim, database, list(endpoints))) is not None:
                repaired += await self._repair(database, thread, gap, endpoints[gap.host])
        finally:
            with trio.CancelScope(shield=True):
                await thread.call(database.close)
        return repaired

    async def _repair(
        self, database: Database, thread: StoreThread, gap: GapRow, endpoint: Endpoint
    ) -> bool:
        cursor, listed, queued = gap.list_cursor, gap.repos_listed, gap.repos_queued
        _log.info("repairing a gap", extra={"host": gap.host, "kind": gap.kind, "gap": gap.id})
        while True:
            try:
                page = await self.listing(endpoint, cursor)
            except HttpFailure as error:
                call = partial(note, database, gap, "failed", listed=listed, queued=queued,
                               cursor=cursor, error=str(error)[:500])  # fmt: skip
                await thread.call(call)
                _log.error("a gap cannot be repaired now: the relay does not list its repos",
                           extra={"host": gap.host, "error": str(error)})  # fmt: skip
                return False
            behind = await thread.call(self._behind, database, page.repos)
            news = await thread.call(_status_news, database, page.repos, _news_time(gap))
            await self._queue(thread, endpoint, behind, news)
            listed, queued = listed + len(page.repos), queued + len(behind)
            over = page.cursor is None or page.cursor == cursor
            cursor = page.cursor
            status = "repaired" if over else "repairing"
            call = partial(note, database, gap, status, listed=listed, queued=queued,
                           cursor=None if over else cursor)  # fmt: skip
            await thread.call(call)
            if over:
                extra = {"host": gap.host, "gap": gap.id, "listed": listed, "queued": queued}
                _log.info("a gap is repaired", extra=extra)
                return True

    def _behind(self, database: Database, repos: Sequence[ListedRepo]) -> list[ListedRepo]:
        """Return the repos that are further than what was taken over live and what is indexed."""
        revs = stored_revs(database, [repo.did for repo in repos])
        states = read_fields(self.store, [state_key(repo_digest(repo.did)) for repo in repos])
        behind = []
        for repo, state in zip(repos, states, strict=True):
            live = rev_of(state) if is_state(state) else 0
            indexed = revs.get(repo.did, "")
            known = max(live, tid_number(indexed) if is_tid(indexed) else 0)
            returned = is_state(state) and is_inactive(state)
            further = not is_tid(repo.rev) or tid_number(repo.rev) > known
            if repo.active and (further or returned):
                behind.append(repo)
        return behind

    async def _queue(
        self,
        thread: StoreThread,
        endpoint: Endpoint,
        repos: Sequence[ListedRepo],
        news: Sequence[Entry],
    ) -> None:
        host = endpoint.http_url()
        entries = [
            Entry(
                REPO_BACKFILL_HIGH, REPO_FIELD,
                encode_repo_job(RepoJob(repo.did, host, repo.rev, repo.status, True, (), "gap")),
            )
            for repo in repos
        ]  # fmt: skip
        entries += news
        call = partial(append, self.store, entries, high_water_marks=self.high_water_marks)
        while entries:
            result = await thread.call(call)
            if result.status != "full":
                return
            await trio.sleep(_FULL_SECONDS)


def sweep_marks(settings: Settings) -> dict[str, int]:
    """Return the high-water marks of the streams that sweeps append to."""
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


def _status_news(database: Database, repos: Sequence[ListedRepo], time: str) -> list[Entry]:
    """Return events of the accounts whose stored status is not the listed one."""
    stored = stored_statuses(database, [repo.did for repo in repos])
    news = []
    for repo in repos:
        if repo.did not in stored or (stored[repo.did] is None) == repo.active:
            continue
        event = AccountEvent(0, time, repo.did, repo.active, repo.status)
        news.append(Entry(FIREHOSE_LIVE, EVENT_FIELD, encode_event(event)))
    if news:
        _log.info("accounts have another status than is stored", extra={"accounts": len(news)})
    return news
