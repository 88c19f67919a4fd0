"""Listing all repos of a relay into `repo_backfill`, page after page, and again after a week.

A page and the cursor after it are written in one step, so that a page is never listed as done
before it is stored. The end is marked as the original service marked it. Repos move while the list
is read, and accounts are created afterwards, so the whole list is read again from time to time.
What a relay cannot list is a hole: `walk` finds how small it is, `holes` keeps it, and it is tried
again. Where that cannot be worked out the listing waits there, and other sources stand in for it.
Source: sync specification (listRepos, listReposByCollection); defects 4 and 5 and incident 3 of the
original ingester.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from rsky_pipeline.configuration.endpoints import Endpoint
from rsky_pipeline.ingester import holes
from rsky_pipeline.ingester.listing import EnumerationState, ListingMetrics, Pace, Progress
from rsky_pipeline.ingester.walk import PAGE_SIZE, Hole, Walk
from rsky_pipeline.network.http import HttpFailure
from rsky_pipeline.network.repositories import ListedRepo, Page
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.health_document import ListingHealth
from rsky_pipeline.runtime.threads import StoreThread
from rsky_pipeline.streams.append import Appended, CursorMove, Entry, append, read_cursor
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.event import REPO_FIELD, RepoJob, encode_repo_job
from rsky_pipeline.streams.names import REPO_BACKFILL, cursor_key

_log = logging.getLogger(__name__)

DONE = "!ingester-done"
LIST_REPOS = "listRepos"  # the name of the source that is not a collection
_FULL_POLL_SECONDS = 1.0
_CHECK_SECONDS = 60.0
_STUCK_SECONDS = (60.0, 3_600.0)  # first and longest wait where no way around is known
_SEARCH_SECONDS = 1.0  # longest wait between requests that look for the end of a hole
# Hosts serve these although they are not active; all others refuse, until an event says otherwise.
_FETCHABLE = frozenset({"throttled", "desynchronized"})

FetchPage = Callable[[Endpoint, str | None, int], Awaitable[Page]]  # raises HttpFailure


@dataclass(frozen=True, slots=True)
class Source:
    """One list of a host: all of its repos, or those with records of a collection."""

    endpoint: Endpoint
    name: str  # LIST_REPOS or the collection
    fetch: FetchPage
    again_seconds: float  # from one beginning to the next
    wanted: Callable[[], bool] = lambda: True  # whether it is to be read now

    @property
    def cursor_key(self) -> str:
        """The key of its cursor; that of listRepos is the original service's."""
        if self.name == LIST_REPOS:
            return cursor_key(REPO_BACKFILL, self.endpoint.key)
        return cursor_key(f"rsky_pipeline:listing:{self.name}", self.endpoint.key)


class Enumerator:
    """The task that reads one source."""

    def __init__(
        self,
        source: Source,
        store: Store,
        high_water_mark: int,
        metrics: IngesterMetrics,
        pace: Pace,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._store = store
        self._thread = StoreThread()
        self._mark = high_water_mark
        self._metrics = metrics
        self._listing = ListingMetrics(metrics, source.endpoint.key, source.name)
        self._pace = pace
        self._clock = clock
        self._backoff = Backoff()
        self._walk: Walk | None = None
        self._holes: dict[int, holes.KnownHole] | None = None
        self._visited: set[int] = set()
        self.state = EnumerationState()

    @property
    def active(self) -> bool:
        """Whether it is read at all, or only stands by."""
        return self._source.wanted()

    def health(self) -> ListingHealth:
        """Return how far it is, for the health document."""
        source = self._source
        summary, problem = self.state.summary(), self.state.problem
        return ListingHealth(source.endpoint.key, source.name, summary, problem)

    async def run(self, stopping: trio.Event) -> None:
        """List, wait and list again until `stopping`; an append in progress is finished."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run)
            await stopping.wait()
            nursery.cancel_scope.cancel()

    async def _run(self) -> None:
        while True:
            try:
                await self._step()
            except HttpFailure as error:
                await self._page_failed(error)
            except (StoreUnavailable, StoreRejected) as error:
                kind = "unavailable" if isinstance(error, StoreUnavailable) else "rejected"
                self._metrics.error(f"store_{kind}")
                self._walk = self._holes = None
                await self._pause(str(error), None)
            else:
                self.state.problem, self.state.stuck = None, False
                self._backoff = Backoff()
            self._listing.observe(self.state)

    async def _step(self) -> None:
        """Do the next thing: begin, read one page, retry a hole, or wait until it is time."""
        if not self._source.wanted():
            await trio.sleep(_CHECK_SECONDS)
            return
        if self._holes is None:
            await self._load()
        cursor = await self._read_cursor()
        if await self._retry_hole():
            return
        self.state.done = cursor == DONE
        if self.state.done:
            await self._wait_for_next()
            return
        if self._walk is None or self._walk.cursor != cursor:
            self._walk = Walk(cursor, PAGE_SIZE)
            self._visited.clear()
        if cursor is None and not self.state.progress.running:
            await self._note_beginning()
        await self._read_page(self._walk)

    async def _load(self) -> None:
        self.state.progress = await self._thread.call(
            Progress.load, self._store, self._source.name, self._source.endpoint.key
        )
        self._holes = {}
        if self._source.name == LIST_REPOS:
            host = self._source.endpoint.key
            self._holes = await self._thread.call(holes.load_holes, self._store, host)
        self.state.holes = len(self._holes)

    async def _read_page(self, walk: Walk) -> None:
        request = walk.request()
        page = await self._fetch(request.cursor, request.limit)
        if not walk.worked():
            return
        following = page.cursor
        if following is not None and (following == DONE or self._repeats(following)):
            _log.warning("a listing repeats its cursor; taking it for the end", extra=self._where())
            following = None
        await self._write(walk, page, following or DONE)

    async def _fetch(self, cursor: str | None, limit: int) -> Page:
        await self._pace.wait()
        page = await self._source.fetch(self._source.endpoint, cursor, limit)
        self._listing.pages.inc()
        self._metrics.repos_fetched.inc(len(page.repos))
        if page.refused:
            self._metrics.error("listed_repo", page.refused)
        return page

    async def _write(self, walk: Walk, page: Page, following: str) -> None:
        entries = self._entries(page.repos)
        if not await self._append(entries, CursorMove(self._key, walk.cursor, following)):
            return
        walk.move(following)
        progress = self.state.progress
        progress.add_page(len(page.repos), len(page.repos) - len(entries), following)
        self.state.done = following == DONE
        if self.state.done:
            progress.ended = int(self._clock())
            _log.info("all repos listed", extra={**self._where(), "repos": progress.repos})
        await self._save_progress()

    async def _append(self, entries: Sequence[Entry], move: CursorMove | None) -> bool:
        """Append, however long the stream is full; tell whether the cursor was where we think."""
        while True:
            result = await self._append_once(entries, move)
            if result.status != "full":
                break
            self.state.problem = "repo_backfill is at its high-water mark"
            await trio.sleep(_FULL_POLL_SECONDS)
        if result.status == "cursor_moved":
            # Somebody reset the listing, or Redis lost its newest data: go on from what it holds.
            self._metrics.error("cursor_moved")
            _log.warning("the listing's cursor was moved by somebody else", extra=self._where())
            self._walk = None
            return False
        self._metrics.repos_written.inc(len(entries))
        self.state.repos += len(entries)
        return True

    async def _append_once(self, entries: Sequence[Entry], move: CursorMove | None) -> Appended:
        marks = {REPO_BACKFILL: self._mark}
        call = partial(append, self._store, entries, cursor=move, high_water_marks=marks)
        return await self._thread.call(call)

    async def _page_failed(self, error: HttpFailure) -> None:
        self._listing.failed()
        self._metrics.error("list_repos")
        walk = self._walk
        if walk is None or not _may_be_the_page(error):
            await self._pause(f"{self._source.name} failed: {error}", error.retry_after)
            return
        hole = walk.failed()
        if hole is not None:
            await self._step_over(walk, hole, str(error))
            return
        self.state.stuck = walk.stuck
        problem = f"{self._source.name} failed: {error}"
        if walk.searching:
            self.state.problem = problem
            await trio.sleep(error.retry_after or _SEARCH_SECONDS * self._backoff_share())
        else:
            await self._pause(problem, error.retry_after)

    def _backoff_share(self) -> float:
        """Return how much of the longest wait of a search is due: more with each failure."""
        self._backoff, wait = self._backoff.failed(trio.current_time())
        return min(1.0, wait)

    async def _step_over(self, walk: Walk, hole: Hole, problem: str) -> None:
        """Write a hole down, and go on behind it."""
        known = self._holes if self._holes is not None else {}
        if len(known) >= holes.MAX_HOLES:
            walk.start_again()
            await self._pause(f"{len(known)} holes already: the host is broken", None)
            return
        found = holes.new_hole(hole, problem, self._clock())
        host, following = self._source.endpoint.key, str(hole.end)
        try:
            await self._thread.call(holes.replace_hole, self._store, host, None, [found])
            if not await self._append([], CursorMove(self._key, walk.cursor, following)):
                return
        except (StoreUnavailable, StoreRejected) as error:
            await self._pause(str(error), None)
            return
        known[found.start] = found
        self.state.holes = len(known)
        walk.step_over(hole)
        self._metrics.cursor_skips.inc()
        _log.error(
            "a host cannot list some repos; going on behind them, and trying them again later",
            extra={**self._where(), "from_cursor": hole.start, "to_cursor": hole.end,
                   "problem": problem[:300]},
        )  # fmt: skip

    async def _retry_hole(self) -> bool:
        """Try the hole again that is due for the longest time; tell whether there was one."""
        now = self._clock()
        due = [hole for hole in (self._holes or {}).values() if hole.retry_at <= now]
        if not due or self._holes is None:
            return False
        hole = min(due, key=lambda item: item.retry_at)
        left = await holes.walk_hole(hole, self._take_from_hole, now)
        host = self._source.endpoint.key
        await self._thread.call(holes.replace_hole, self._store, host, hole, left)
        del self._holes[hole.start]
        self._holes |= {item.start: item for item in left}
        self.state.holes = len(self._holes)
        self._metrics.hole_retries.labels("left" if left else "closed").inc()
        _log.info("tried a hole of a listing again",
                  extra={**self._where(), "from_cursor": hole.start, "to_cursor": hole.end,
                         "holes_left": len(left)})  # fmt: skip
        return True

    async def _take_from_hole(self, cursor: str, limit: int) -> str | None:
        try:
            page = await self._fetch(cursor, limit)
        except HttpFailure as error:
            if not _may_be_the_page(error):
                raise
            self._listing.failed()
            raise holes.CannotList(str(error)) from error
        await self._append(self._entries(page.repos), None)
        return page.cursor

    def _entries(self, repos: Sequence[ListedRepo]) -> list[Entry]:
        host = self._source.endpoint.http_url()
        entries = []
        for repo in repos:
            if not repo.active and repo.status not in _FETCHABLE:
                self._listing.skip(repo.status)
                continue
            job = RepoJob(repo.did, host, repo.rev, repo.status, repo.active)
            entries.append(Entry(REPO_BACKFILL, REPO_FIELD, encode_repo_job(job)))
        return entries

    def _repeats(self, cursor: str) -> bool:
        """Tell whether a cursor was met on this way already: a list that never ends."""
        mark = hash(cursor)
        known = mark in self._visited
        self._visited.add(mark)
        return known

    async def _note_beginning(self) -> None:
        self.state.progress = Progress(began=int(self._clock()))
        await self._save_progress()
        _log.info("listing all repos", extra=self._where())

    async def _wait_for_next(self) -> None:
        """Begin again if the last listing began long ago, else wait a little."""
        progress = self.state.progress
        if not progress.began:
            # Listed by the original service, which did not note when.
            progress.began = progress.ended = int(self._clock())
            await self._save_progress()
        elif self._clock() - progress.began >= self._source.again_seconds:
            # In this order: a listing that was reset notes its beginning if it is not noted yet.
            await self._append_once([], CursorMove(self._key, DONE, ""))
            await self._note_beginning()
        else:
            await trio.sleep(_CHECK_SECONDS)

    async def _save_progress(self) -> None:
        name, host = self._source.name, self._source.endpoint.key
        await self._thread.call(self.state.progress.save, self._store, name, host)

    @property
    def _key(self) -> str:
        return self._source.cursor_key

    async def _read_cursor(self) -> str | None:
        # An empty text is a listing that was reset.
        return await self._thread.call(read_cursor, self._store, self._key) or None

    async def _pause(self, problem: str, wait: float | None) -> None:
        self._backoff, own_wait = self._backoff.failed(trio.current_time())
        if self.state.stuck:
            own_wait = min(_STUCK_SECONDS[1], _STUCK_SECONDS[0] * self._backoff.failures)
        wait = wait or own_wait
        extra = {**self._where(), "problem": problem, "wait_s": round(wait, 1)}
        if self.state.stuck:
            _log.error("a listing is stuck at a repo that the host cannot list", extra=extra)
        elif problem != self.state.problem:
            _log.warning("listing repos goes on later", extra=extra)
        self.state.problem = problem
        self._listing.observe(self.state)
        await trio.sleep(wait)

    def _where(self) -> dict[str, str]:
        return {"host": self._source.endpoint.key, "source": self._source.name}


def _may_be_the_page(error: HttpFailure) -> bool:
    """Tell whether another page could work where this one failed."""
    if error.kind == "status":
        return error.retry_after is None and error.status in {400, 500, 502, 504}
    return error.kind in {"malformed", "too_big", "timeout"}
