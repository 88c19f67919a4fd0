"""Listing all repos of a relay into `repo_backfill`, page after page, and again after a week.

A page and the cursor after it are written in one step, so that a page is never listed as done
before it is stored. The end is marked as the Rust service marked it. Repos move while the list is
read, and accounts are created afterwards, so the whole list is read again from time to time.
Ranges that the relay cannot list are stored before the listing moves behind them, and listed again
later. Where no way around a page is known the listing waits there, and listings by collection stand
in for it.
https://atproto.com/specs/sync (listRepos, listReposByCollection)
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import TypeVar

import orjson
import trio

from rsky_pipeline.configuration.endpoints import Endpoint
from rsky_pipeline.configuration.selection import Selection
from rsky_pipeline.network.http import HttpError
from rsky_pipeline.network.listing import (
    PAGE_REPOS,
    Listed,
    ListedRepo,
    Lister,
    ListingFailure,
    Pace,
    Page,
    Relisted,
    Unlistable,
    UnlistableRange,
    relist,
)
from rsky_pipeline.observability.ingester import LISTED_STATUSES, IngesterMetrics
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.errors import StoreError, described
from rsky_pipeline.runtime.health_document import ListingHealth
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.streams.append import Appended, CursorMove, Entry, append, read_cursor
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.errors import store_reason
from rsky_pipeline.streams.names import REPO_BACKFILL, cursor_key
from rsky_pipeline.streams.repo_job import REPO_FIELD, RepoJob, encode_repo_job

_log = logging.getLogger(__name__)
_throttled = ThrottledLog(_log, 600.0)
Stored = TypeVar("Stored", "ListingProgress", "StoredRange")

DONE = "!ingester-done"
LIST_REPOS = "listRepos"  # the name of the source that is not a collection
_FULL_POLL_SECONDS = 1.0
_CHECK_SECONDS = 60.0
FIRST_RETRY_SECONDS = 600  # of an unlistable range
LAST_RETRY_SECONDS = 86_400
MAX_RANGES = 1_000  # a host with more is broken as a whole: its listing waits
# Hosts serve these although they are not active, and refuse all others until an account event.
_FETCHABLE = frozenset({"throttled", "desynchronized"})

# The page of an endpoint at a cursor, of at most so many repos. Raises HttpError.
FetchFrom = Callable[[Endpoint, str | None, int], Awaitable[Page]]


@dataclass(frozen=True, slots=True)
class ListingSource:
    """One list of a host: all of its repos, or those with records of a collection."""

    endpoint: Endpoint
    name: str  # LIST_REPOS or the collection
    fetch: FetchFrom
    again_seconds: float  # from one beginning to the next
    wanted: Callable[[], bool] = lambda: True  # whether it is to be read now

    @property
    def cursor_key(self) -> str:
        """The key of its cursor; that of listRepos is the Rust service's."""
        if self.name == LIST_REPOS:
            return cursor_key(REPO_BACKFILL, self.endpoint.key)
        return cursor_key(f"rsky_pipeline:listing:{self.name}", self.endpoint.key)


@dataclass(frozen=True, slots=True)
class StoredRange:
    """An unlistable range, and when it is listed again; times are seconds since 1970."""

    start: int
    end: int
    problem: str
    found: int
    tries: int = 0
    retry_at: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"no range: {self.range}")

    @property
    def range(self) -> UnlistableRange:
        """The cursors from which nothing can be listed."""
        return UnlistableRange(self.start, self.end)

    def after(self, again: Relisted, now: float) -> "list[StoredRange]":
        """Return the ranges that are left after another attempt; each waits twice as long."""
        tries = self.tries + 1
        wait = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(tries, 20))
        left = [
            StoredRange(each.start, each.end, self.problem, self.found, tries, int(now) + wait)
            for each in again.failed
        ]
        rest = again.untried
        if rest is not None:
            left.append(
                StoredRange(rest.start, rest.end, self.problem, self.found, self.tries, int(now))
            )
        return left

    def put_off(self, now: float) -> "StoredRange":
        """Return the range as it is after an attempt that failed for another reason than it."""
        return replace(self, retry_at=int(now) + FIRST_RETRY_SECONDS)


class Enumerator:
    """The task that reads one source."""

    def __init__(
        self,
        source: ListingSource,
        open_store: Callable[[], Store],
        high_water_mark: int,
        metrics: IngesterMetrics,
        pace: Pace,
        selection: Callable[[], Selection] = Selection,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._selection = selection
        self._link = Link(
            open_store, purpose=f"list-{source.name}-{source.endpoint.key}",
            failed=self._store_failed,
        )  # fmt: skip
        self._mark = high_water_mark
        self._metrics = metrics
        self._listing = ListingMetrics(metrics, source.endpoint.key, source.name)
        self._pace = pace
        self._clock = clock
        self._backoff = Backoff()
        self._boundary = Boundary(lambda: metrics.error("internal_error"))
        self._ranges: dict[int, StoredRange] = {}
        self.state = EnumerationState()

    @property
    def active(self) -> bool:
        """Whether it is read at all, or only stands by."""
        return self._source.wanted()

    def health(self) -> ListingHealth:
        """Return the progress of the listing, for the health document."""
        return ListingHealth(
            host=self._source.endpoint.key,
            source=self._source.name,
            summary=self.state.summary(),
            problem=self.state.problem,
        )

    async def run(self, stopping: trio.Event) -> None:
        """List, wait and list again until `stopping`; an append in progress is finished."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run)
                await stopping.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._link.close()

    async def _run(self) -> None:
        while True:
            try:
                await self._go_on()
            except HttpError as error:  # of a range that is listed again
                await self._pause(f"{self._source.name} failed: {error}", error.retry_after)
            except Exception as error:  # noqa: BLE001 - see runtime.boundary
                self._boundary.caught(error, "listing", **self._where())
                await self._pause(described(error), None)
            else:
                self._note_success()

    async def _go_on(self) -> None:
        """List from the stored cursor to the end, or wait until it is time to begin again."""
        if not self.active:
            await trio.sleep(_CHECK_SECONDS)
            return
        await self._load()
        cursor = await self._read_cursor()
        await self._list_again()
        self.state.done = cursor == DONE
        if self.state.done:
            await self._wait_for_next()
            return
        if cursor is None and not self.state.progress.running:
            await self._note_beginning()
        lister = Lister(self._fetch, cursor, page_size=PAGE_REPOS, failed=self._request_failed)
        async for item in lister:
            if isinstance(item, Listed):
                moved = await self._write(item)
            else:
                moved = await self._step_over(item)
            self._note_success()
            if not moved or not self.active:
                return  # another writer moved the cursor, or another source is wanted
            if item.following is None or item.following == DONE:
                return
            await self._list_again()

    async def _load(self) -> None:
        name, host = self._source.name, self._source.endpoint.key
        self.state.progress = await self._link.retry(
            lambda store: ListingProgress.load(store, name, host)
        )
        if name == LIST_REPOS:
            self._ranges = await self._link.retry(partial(load_ranges, host=host))
        self.state.holes = len(self._ranges)

    async def _fetch(self, cursor: str | None, limit: int) -> Page:
        await self._pace.wait()
        try:
            page = await self._source.fetch(self._source.endpoint, cursor, limit)
        except HttpError:
            self._listing.failed()
            self._metrics.error("list_repos")
            raise
        self._listing.pages.inc()
        self._metrics.repos_fetched.inc(len(page.repos))
        if page.refused:
            self._metrics.error("listed_repo", page.refused)
        return page

    async def _write(self, page: Listed) -> bool:
        """Queue a page and move the cursor with it; tell whether the cursor was where it was."""
        following = page.following or DONE
        entries = self._entries(page.repos)
        if not await self._append(entries, CursorMove(self._key, page.cursor, following)):
            return False
        progress = self.state.progress
        progress.add_page(len(page.repos), len(page.repos) - len(entries), following)
        self.state.done = following == DONE
        if self.state.done:
            progress.ended = int(self._clock())
            _log.info("all repos listed", extra={**self._where(), "repos": progress.repos})
        await self._save_progress()
        return True

    async def _step_over(self, item: Unlistable) -> bool:
        """Store an unlistable range and move the cursor behind it; False if it has moved."""
        if len(self._ranges) >= MAX_RANGES:
            await self._pause(f"{len(self._ranges)} unlistable ranges: the host is broken", None)
            return False
        found = new_range(item.range, item.problem, self._clock())
        host = self._source.endpoint.key
        await self._link.retry(partial(replace_range, host=host, old=None, new=[found]))
        if not await self._append([], CursorMove(self._key, item.cursor, item.following)):
            return False
        self._ranges[found.start] = found
        self.state.holes = len(self._ranges)
        self._metrics.cursor_skips.inc()
        _log.error(
            "host cannot list a range of repos; continuing behind it, retry scheduled",
            extra={**self._where(), "from_cursor": found.start, "to_cursor": found.end,
                   "problem": item.problem},
        )  # fmt: skip
        return True

    async def _append(self, entries: Sequence[Entry], move: CursorMove | None) -> bool:
        """Append, however long the stream is full; tell whether the cursor was as expected."""
        while True:
            result = await self._append_once(entries, move)
            if result.status != "full":
                break
            self.state.problem = "repo_backfill is at its high-water mark"
            await trio.sleep(_FULL_POLL_SECONDS)
        if result.status == "cursor_moved":
            # An operator reset the listing, or Redis lost its newest data.
            self._metrics.error("cursor_moved")
            _log.warning("listing cursor moved by another writer", extra=self._where())
            return False
        self._metrics.repos_written.inc(len(entries))
        self.state.repos += len(entries)
        return True

    async def _append_once(self, entries: Sequence[Entry], move: CursorMove | None) -> Appended:
        marks = {REPO_BACKFILL: self._mark}
        return await self._link.retry(
            partial(append, entries=entries, cursor=move, high_water_marks=marks)
        )

    async def _list_again(self) -> None:
        """List the unlistable range again that is due for the longest time, if one is due."""
        now = self._clock()
        due = [each for each in self._ranges.values() if each.retry_at <= now]
        if not due:
            return
        old = min(due, key=lambda each: each.retry_at)

        async def take(repos: Sequence[ListedRepo]) -> None:
            await self._append(self._entries(repos), None)

        try:
            left = old.after(await relist(self._fetch, old.range, take), now)
        except Exception:
            # The listing itself must not wait until the host answers for this range.
            await self._replace(old, [old.put_off(now)])
            raise
        await self._replace(old, left)
        self._metrics.hole_retries.labels("left" if left else "closed").inc()
        _log.info("listed an unlistable range again",
                  extra={**self._where(), "from_cursor": old.start, "to_cursor": old.end,
                         "ranges_left": len(left)})  # fmt: skip

    async def _replace(self, old: StoredRange, left: list[StoredRange]) -> None:
        host = self._source.endpoint.key
        await self._link.retry(partial(replace_range, host=host, old=old, new=left))
        del self._ranges[old.start]
        self._ranges |= {each.start: each for each in left}
        self.state.holes = len(self._ranges)

    def _entries(self, repos: Sequence[ListedRepo]) -> list[Entry]:
        host = self._source.endpoint.http_url()
        entries = []
        for repo in repos:
            if not repo.active and repo.status not in _FETCHABLE:
                self._listing.skip(repo.status)
                continue
            kind = self._selection().left_out(repo.did, host=self._source.endpoint.key)
            if kind is not None:  # the backfiller would leave it out
                self._metrics.blocked.labels(kind).inc()
                continue
            job = RepoJob(repo.did, host, repo.rev, repo.status, repo.active)
            entries.append(Entry(REPO_BACKFILL, REPO_FIELD, encode_repo_job(job)))
        return entries

    async def _note_beginning(self) -> None:
        self.state.progress = ListingProgress(began=int(self._clock()))
        await self._save_progress()
        _log.info("listing all repos", extra=self._where())

    async def _wait_for_next(self) -> None:
        """Begin again if the last listing began long ago, else wait a little."""
        progress = self.state.progress
        if not progress.began:
            # Listed by the Rust service, which did not note when.
            progress.began = progress.ended = int(self._clock())
            await self._save_progress()
        elif self._clock() - progress.began >= self._source.again_seconds:
            # In this order: a listing that was reset notes its beginning if it is not noted yet.
            await self._append_once([], CursorMove(self._key, DONE, ""))
            await self._note_beginning()
        else:
            self._note_success()
            await trio.sleep(_CHECK_SECONDS)

    async def _save_progress(self) -> None:
        name, host = self._source.name, self._source.endpoint.key
        progress = self.state.progress
        await self._link.retry(partial(progress.save, source=name, host=host))

    @property
    def _key(self) -> str:
        return self._source.cursor_key

    async def _read_cursor(self) -> str | None:
        # An empty text is a listing that was reset.
        return await self._link.retry(partial(read_cursor, key=self._key)) or None

    async def _pause(self, problem: str, wait: float | None) -> None:
        self._backoff, own_wait = self._backoff.failed(trio.current_time())
        seconds = wait or own_wait
        self._note_failure(ListingFailure(problem, seconds, self.state.stuck, searching=False))
        await trio.sleep(seconds)

    def _store_failed(self, error: StoreError) -> None:
        self._metrics.error(store_reason(error))
        self.state.problem = str(error)

    def _request_failed(self, failure: ListingFailure) -> None:
        problem = f"{self._source.name} failed: {failure.problem}"
        self._note_failure(replace(failure, problem=problem))

    def _note_failure(self, failure: ListingFailure) -> None:
        problem = failure.problem
        extra = {**self._where(), "problem": problem, "wait_s": round(failure.seconds, 1)}
        if failure.stuck:
            _log.error("listing repos stuck at a repo that the host cannot list", extra=extra)
        elif not failure.searching and problem != self.state.problem:
            _log.warning("listing repos paused", extra=extra)
        self.state.problem, self.state.stuck = problem, failure.stuck
        self._listing.observe(self.state)

    def _note_success(self) -> None:
        self.state.problem, self.state.stuck = None, False
        self._backoff = Backoff()
        self._listing.observe(self.state)

    def _where(self) -> dict[str, str]:
        return {"host": self._source.endpoint.key, "source": self._source.name}


@dataclass(slots=True)
class ListingProgress:
    """How far the present round of a listing is; times are seconds since 1970, 0 for none."""

    began: int = 0
    ended: int = 0
    pages: int = 0
    repos: int = 0
    skipped: int = 0  # not active, and therefore not queued
    cursor: str = ""  # where it is; the true one is the cursor's own key

    @property
    def running(self) -> bool:
        """Whether a round has begun and not ended."""
        return bool(self.began) and not self.ended

    def add_page(self, repos: int, skipped: int, cursor: str) -> None:
        """Count a page."""
        self.pages += 1
        self.repos += repos
        self.skipped += skipped
        self.cursor = cursor

    @classmethod
    def load(cls, store: Store, source: str, host: str) -> "ListingProgress":
        """Return the saved progress; none where it is missing or unreadable."""
        key = progress_key(source, host)
        value = store.call("GET", key)
        return (value and _read_stored(cls, value, key)) or cls()

    def save(self, store: Store, source: str, host: str) -> None:
        """Store it; it informs operators, and decides when the next round begins."""
        store.call("SET", progress_key(source, host), orjson.dumps(asdict(self)))


def progress_key(source: str, host: str) -> str:
    """Return the key of a listing's progress."""
    return f"rsky_pipeline:listing:{source}:progress:{host}"


@dataclass(slots=True)
class EnumerationState:
    """How far a listing is."""

    done: bool = False
    stuck: bool = False  # at a repo that cannot be listed, and no way around is known
    repos: int = 0  # appended since this process began
    holes: int = 0  # unlistable ranges
    problem: str | None = None
    progress: ListingProgress = field(default_factory=ListingProgress)

    def summary(self) -> str:
        """Return one line for people."""
        way = "done" if self.done else "stuck" if self.stuck else "running"
        so_far = self.progress
        return (
            f"{way}: {so_far.repos} repos in {so_far.pages} pages, {so_far.skipped} not active, "
            f"{self.holes} unlistable ranges, cursor {so_far.cursor[:40] or 'at the beginning'}"
        )


class ListingMetrics:
    """The series of one listing."""

    def __init__(self, metrics: IngesterMetrics, host: str, source: str) -> None:
        self._metrics = metrics
        self.pages = metrics.listing_pages.labels(host, source)
        self._failures = metrics.listing_failures.labels(host, source)
        self._repos = metrics.listing_repos.labels(host, source)
        self._position = metrics.listing_position.labels(host, source)
        self._done = metrics.listing_done.labels(host, source)
        self._stuck = metrics.listing_stuck.labels(host, source)
        self._holes = metrics.listing_holes.labels(host)
        self._is_main = source == LIST_REPOS

    def failed(self) -> None:
        """Count a request that failed."""
        self._metrics.fetch_errors.inc()
        self._failures.inc()

    def skip(self, status: str | None) -> None:
        """Count a repo that is not queued because its host would refuse it."""
        known = status if status in LISTED_STATUSES else "other"
        self._metrics.listing_skipped.labels(known).inc()

    def observe(self, state: EnumerationState) -> None:
        """Set the gauges."""
        self._repos.set(state.progress.repos)
        cursor = state.progress.cursor
        self._position.set(float(cursor) if cursor.isascii() and cursor.isdigit() else 0)
        self._done.set(state.done)
        self._stuck.set(state.stuck)
        if self._is_main:
            self._holes.set(state.holes)


def new_range(missing: UnlistableRange, problem: str, now: float) -> StoredRange:
    """Return the record of a range that was just found."""
    when = int(now)
    return StoredRange(
        missing.start, missing.end, problem[:300], when, 0, when + FIRST_RETRY_SECONDS
    )


def ranges_key(host: str) -> str:
    """Return the key of a host's unlistable ranges."""
    return f"rsky_pipeline:listing_holes:{host}"


def load_ranges(store: Store, host: str) -> dict[int, StoredRange]:
    """Return the ranges of a host by their start; unreadable ones are left out, and stay there."""
    key = ranges_key(host)
    read = (_read_stored(StoredRange, value, key) for value in store.call("HVALS", key))
    return {each.start: each for each in read if each is not None}


def add_range(store: Store, host: str, found: StoredRange) -> None:
    """Store a range unless one with its start is stored already, with its own retries."""
    store.call("HSETNX", ranges_key(host), str(found.start), orjson.dumps(asdict(found)))


def replace_range(store: Store, host: str, old: StoredRange | None, new: list[StoredRange]) -> None:
    """Store the rest of a range, or a new one; written before the old one is removed."""
    if new:
        fields = [item for each in new for item in (str(each.start), orjson.dumps(asdict(each)))]
        store.call("HSET", ranges_key(host), *fields)
    if old is not None and old.start not in {each.start for each in new}:
        store.call("HDEL", ranges_key(host), str(old.start))


def _read_stored(kind: type[Stored], value: bytes, key: str) -> Stored | None:
    """Read a dataclass from JSON; None, with a line in the log, where that is not possible.

    Another version may have written it, or a person. Unknown keys are ignored.
    """
    try:
        body = orjson.loads(value)
        if not isinstance(body, dict):
            raise TypeError("no object")
        known = {each.name: body[each.name] for each in fields(kind) if each.name in body}
        for each in fields(kind):
            if each.name in known and type(known[each.name]) is not each.type:
                raise TypeError(f"{each.name} is {str(known[each.name])[:100]!r}")
        return kind(**known)
    except (ValueError, TypeError) as error:
        _throttled.error(
            "unreadable state of a listing ignored", key=key, stored_at=key, error=str(error)
        )
        return None
