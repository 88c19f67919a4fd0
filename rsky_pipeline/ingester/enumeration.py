"""Listing all repos of a relay into `repo_backfill`, page after page, and again after a day.

A page and the cursor after it are written in one step, so that a page is never listed as done
before it is stored. The end is marked as the original service marked it. Repos move while the list
is read, and accounts are created afterwards, so the whole list is read again from time to time.
A relay may fail for ever on a page that holds one broken repo: pages are made smaller until that
repo stands alone, and only it is stepped over, counted and named in the log.
Source: sync specification (listRepos); defects 4 and 5 and incident 3 of the original ingester.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from rsky_pipeline.network.hosts import Endpoint
from rsky_pipeline.network.http import HttpFailure
from rsky_pipeline.network.repositories import Page
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.threads import StoreThread
from rsky_pipeline.streams.append import Appended, CursorMove, Entry, append, read_cursor
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.event import REPO_FIELD, RepoJob, encode_repo_job
from rsky_pipeline.streams.names import REPO_BACKFILL, cursor_key

_log = logging.getLogger(__name__)

DONE = "!ingester-done"
PAGE_SIZE = 1_000
AGAIN_SECONDS = 86_400
_FULL_POLL_SECONDS = 1.0
_CHECK_SECONDS = 60.0
_TRIES = 3

FetchPage = Callable[[Endpoint, str | None, int], Awaitable[Page]]  # raises HttpFailure


@dataclass(slots=True)
class PageLimit:
    """How many repos to ask for: fewer after failures, more again after successes. Pure."""

    limit: int
    failures: int = 0  # since the last page that came, or the last change

    def failed(self) -> None:
        """Take note of a page that did not come; the third time in a row asks for less."""
        self.failures += 1
        if self.failures >= _TRIES and self.limit > 1:
            self.limit, self.failures = max(1, self.limit // 10), 0

    def worked(self) -> None:
        """Take note of a page."""
        self.limit, self.failures = min(PAGE_SIZE, self.limit * 10), 0

    def stepped_over(self) -> None:
        """Take note that the next repo is another one; one failure is enough for it."""
        self.failures = _TRIES - 1

    @property
    def hopeless(self) -> bool:
        """Whether a single repo was asked for in vain often enough."""
        return self.limit == 1 and self.failures >= _TRIES


@dataclass(slots=True)
class EnumerationState:
    """How far the listing of a relay is."""

    done: bool = False
    repos: int = 0  # appended since this process began
    problem: str | None = None


class Enumerator:
    """The task that lists one relay."""

    def __init__(
        self,
        endpoint: Endpoint,
        store: Store,
        high_water_mark: int,
        fetch: FetchPage,
        metrics: IngesterMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._endpoint = endpoint
        self._store = store
        self._thread = StoreThread()
        self._mark = high_water_mark
        self._fetch = fetch
        self._metrics = metrics
        self._clock = clock
        self._cursor_key = cursor_key(REPO_BACKFILL, endpoint.key)
        self._began_key = cursor_key(f"{REPO_BACKFILL}:began", endpoint.key)
        self._backoff = Backoff()
        self._begun = False
        self._page = PageLimit(PAGE_SIZE)
        self.state = EnumerationState()

    @property
    def host(self) -> str:
        """The relay, as cursors name it."""
        return self._endpoint.key

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
                self._metrics.fetch_errors.inc()
                self._metrics.error("list_repos")
                self._page.failed()
                await self._pause(f"listRepos failed: {error}", error.retry_after)
            except (StoreUnavailable, StoreRejected) as error:
                kind = "unavailable" if isinstance(error, StoreUnavailable) else "rejected"
                self._metrics.error(f"store_{kind}")
                await self._pause(str(error), None)
            else:
                self.state.problem = None
                self._backoff = Backoff()

    async def _step(self) -> None:
        """Do the next thing: begin, read one page, or wait until it is time to begin again."""
        cursor = await self._read(self._cursor_key)
        self.state.done = cursor == DONE
        if self.state.done:
            await self._wait_for_next()
            return
        if cursor is None and not self._begun:
            await self._note_beginning()
        if self._page.hopeless and cursor is not None and cursor.isdigit():
            await self._step_over(cursor)
            return
        page = await self._fetch(self._endpoint, cursor, self._page.limit)
        self._page.worked()
        self._metrics.repos_fetched.inc(len(page.repos))
        following = page.cursor
        if following is not None and following in {cursor, DONE}:
            _log.warning("listRepos repeats its cursor; taking it for the end", extra=self._where())
            following = None
        await self._write(page, cursor, following or DONE)

    async def _step_over(self, cursor: str) -> None:
        """Go on behind a repo that the relay cannot list. Raises HttpFailure if it lists nothing.

        Cursors are opaque, but those of the relays where this was seen are numbers of repos.
        """
        await self._fetch(self._endpoint, None, 1)
        following = str(int(cursor) + 1)
        await self._append([], CursorMove(self._cursor_key, cursor, following))
        self._page.stepped_over()
        self._metrics.cursor_skips.inc()
        _log.error("the relay cannot list a repo; stepping over it",
                   extra={**self._where(), "cursor": cursor})  # fmt: skip

    async def _write(self, page: Page, cursor: str | None, following: str) -> None:
        entries = self._entries(page)
        move = CursorMove(self._cursor_key, cursor, following)
        while True:
            result = await self._append(entries, move)
            if result.status != "full":
                break
            self.state.problem = "repo_backfill is at its high-water mark"
            await trio.sleep(_FULL_POLL_SECONDS)
        if result.status == "cursor_moved":
            # Somebody reset the listing, or Redis lost its newest data: go on from what it holds.
            self._metrics.error("cursor_moved")
            _log.warning("the listing's cursor was moved by somebody else", extra=self._where())
            return
        self._metrics.repos_written.inc(len(entries))
        self.state.repos += len(entries)
        self.state.done = following == DONE
        if self.state.done:
            _log.info("all repos listed", extra={**self._where(), "repos": self.state.repos})

    def _entries(self, page: Page) -> list[Entry]:
        host = self._endpoint.http_url()
        jobs = (RepoJob(repo.did, host, repo.rev, repo.status, repo.active) for repo in page.repos)
        return [Entry(REPO_BACKFILL, REPO_FIELD, encode_repo_job(job)) for job in jobs]

    async def _note_beginning(self) -> None:
        before = await self._read(self._began_key)
        await self._append([], CursorMove(self._began_key, before, str(int(self._clock()))))
        self._begun = True
        _log.info("listing all repos", extra=self._where())

    async def _wait_for_next(self) -> None:
        """Begin again if the last listing began long ago, else wait a little."""
        began = await self._read(self._began_key)
        if began is None or not began.isdigit():
            # Listed by the original service, which did not note when.
            await self._note_beginning()
        elif self._clock() - int(began) >= AGAIN_SECONDS:
            await self._note_beginning()
            await self._append([], CursorMove(self._cursor_key, DONE, ""))
        else:
            await trio.sleep(_CHECK_SECONDS)

    async def _append(self, entries: Sequence[Entry], move: CursorMove) -> Appended:
        marks = {REPO_BACKFILL: self._mark}
        call = partial(append, self._store, entries, cursor=move, high_water_marks=marks)
        return await self._thread.call(call)

    async def _read(self, key: str) -> str | None:
        # An empty text is a listing that was reset.
        return await self._thread.call(read_cursor, self._store, key) or None

    async def _pause(self, problem: str, wait: float | None) -> None:
        self._backoff, own_wait = self._backoff.failed(trio.current_time())
        self.state.problem = problem
        wait = wait or own_wait
        extra = {**self._where(), "problem": problem, "wait_s": round(wait, 1)}
        _log.warning("listing repos goes on later", extra=extra)
        await trio.sleep(wait)

    def _where(self) -> dict[str, str]:
        return {"host": self._endpoint.key}
