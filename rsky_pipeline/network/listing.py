"""Paging through the repos of a host: com.atproto.sync.listRepos and listReposByCollection.

`Lister` is the only pager. Iterate over it: each item is a page of repos, or a range of cursors
that the host cannot serve; both carry the cursor to continue at. A page that fails for ever costs
the repos that break it and no others, so that one bad repo at a relay does not end a listing.

Cursors are opaque (https://atproto.com/specs/xrpc#cursors-and-pagination), and a failed page does
not tell where the next one begins. `Walk` decides which page is asked for: pages shrink until the
broken repo stands alone. Where the cursor is a number, as on the relays where this happened, the
numbers behind it are tried one by one: each leaves out one more number, and so at most one repo.
Only after a long run of failures are larger steps taken, and the first cursor that works is then
found by bisection. Between them lies an `UnlistableRange`, which callers store: `relist` asks
for it again.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import quote

import trio

from rsky_pipeline.atproto.syntax import is_did
from rsky_pipeline.configuration.endpoints import Endpoint
from rsky_pipeline.network.http import HttpClient, HttpError
from rsky_pipeline.runtime.backoff import Backoff

PAGE_REPOS = 1_000  # the largest that the lexicon allows
MAX_PAGE_BYTES = 4 * 1024 * 1024
TRIES = 3  # of a single repo, before cursors behind it are tried
GROW_AFTER = 3  # pages in a row, before larger ones are asked for again
LINEAR = 1_000  # cursors that are tried one by one
SUSPECT_AFTER = 10  # failures in a row of any kind, after which the page may be what fails
CHECK_EVERY = 50  # failures in a row after which another page is asked for
MAX_RELIST_REQUESTS = 200  # of one attempt at an unlistable range
SEARCH_SECONDS = 1.0  # longest wait between requests that look for the end of a range
STUCK_SECONDS = (60.0, 3_600.0)  # first and longest wait where no way around is known
_FARTHEST = 2**40

# The page at a cursor (None: the beginning), of at most so many repos. Raises HttpError.
FetchPage = Callable[[str | None, int], Awaitable["Page"]]


@dataclass(frozen=True, slots=True)
class ListedRepo:
    """A repo as a host lists it."""

    did: str
    rev: str
    active: bool
    status: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing; without a cursor it is the last. `refused` entries were malformed."""

    repos: tuple[ListedRepo, ...]
    cursor: str | None
    refused: int = 0


@dataclass(frozen=True, slots=True)
class UnlistableRange:
    """Pages that begin at a cursor from `start` on and before `end` cannot be served."""

    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.start} to {self.end}"


@dataclass(frozen=True, slots=True)
class Listed:
    """A page that was listed: asked for at `cursor`, continued at `following`, None at the end."""

    cursor: str | None
    following: str | None
    repos: tuple[ListedRepo, ...]


@dataclass(frozen=True, slots=True)
class Unlistable:
    """A range that the host cannot serve, from `cursor` to `following`, and its last answer."""

    cursor: str | None
    following: str
    range: UnlistableRange
    problem: str


@dataclass(frozen=True, slots=True)
class ListingFailure:
    """A request that failed, and how long the lister waits before the next one."""

    problem: str
    seconds: float
    stuck: bool  # at a repo that cannot be listed, and no cursor behind it is known
    searching: bool  # for the end of an unlistable range; the wait is short then


async def list_repos(
    http: HttpClient, endpoint: Endpoint, cursor: str | None, limit: int = PAGE_REPOS
) -> Page:
    """Fetch a page of listRepos from a configured host.

    Raises HttpError; entries that are malformed are left out.
    """
    return await _page(http, endpoint, "listRepos", cursor, limit)


async def list_repos_by_collection(
    http: HttpClient, collection: str, endpoint: Endpoint, cursor: str | None, limit: int
) -> Page:
    """Fetch a page of listReposByCollection: accounts with records of a collection.

    Its repos have neither rev nor hosting status. Raises HttpError.
    """
    name = f"listReposByCollection?collection={quote(collection, safe='')}"
    return await _page(http, endpoint, name, cursor, limit)


class Pace:
    """Spreads the requests to one host evenly in time, over all of its listings."""

    def __init__(self, requests_per_minute: int) -> None:
        self._interval = 60.0 / requests_per_minute
        self._next = 0.0

    async def wait(self) -> None:
        """Return when the next request may be made."""
        now = trio.current_time()
        due = max(now, self._next)
        self._next = due + self._interval
        await trio.sleep(due - now)


class Lister:
    """One pass over a listing, from a cursor to its end; iterate over it.

    Asking for the next item confirms the one before: store its repos first. A request that
    fails is made again after a wait. With `tries` the iterator raises HttpError when the host
    serves nothing so many times in a row, or when no way around a page is known; without, it goes
    on until cancelled. `failed` is called before each wait.
    """

    def __init__(
        self,
        fetch: FetchPage,
        cursor: str | None = None,
        *,
        page_size: int = PAGE_REPOS,
        tries: int | None = None,
        failed: Callable[[ListingFailure], object] = lambda _: None,
    ) -> None:
        self._fetch = fetch
        self._walk = Walk(cursor, page_size)
        self._tries = tries
        self._failed = failed
        self._backoff = Backoff()
        self._unanswered = 0  # failures in a row that another page would not have avoided
        self._suspected = False  # such failures lasted, so that the page may be their reason
        self._visited = {hash(cursor)}
        self._last: Listed | Unlistable | None = None

    def __aiter__(self) -> "Lister":
        return self

    async def __anext__(self) -> Listed | Unlistable:
        """Return the next page or unlistable range. Raises HttpError only with `tries`."""
        last = self._last
        if last is not None:
            if last.following is None:
                raise StopAsyncIteration
            self._walk.move(last.following, good=isinstance(last, Listed))
            self._suspected = False
        self._last = await self._next()
        return self._last

    async def _next(self) -> Listed | Unlistable:
        """Ask until there is a page, or until it is known which pages there are not."""
        walk = self._walk
        while True:
            request = walk.request()
            try:
                page = await self._fetch(request.cursor, request.limit)
            except HttpError as error:
                missing = walk.failed() if self._is_the_page(error) else None
                if missing is not None:
                    return Unlistable(walk.cursor, str(missing.end), missing, str(error)[:300])
                await self._wait(error)
                continue
            self._backoff, self._unanswered = Backoff(), 0
            if walk.worked():
                return Listed(walk.cursor, self._following(page.cursor), page.repos)

    def _is_the_page(self, error: HttpError) -> bool:
        """Whether to look for another page that works; a host that is down makes no range so."""
        if may_be_the_page(error):
            return True
        # A page that breaks the host's process, or that a proxy refuses, looks like an outage.
        self._suspected |= self._unanswered >= SUSPECT_AFTER
        return self._suspected and self._walk.numbered and error.status != 429

    def _following(self, cursor: str | None) -> str | None:
        """Return the cursor to go on at; None for one that was met before: an endless list."""
        if cursor is None or hash(cursor) in self._visited:
            return None
        self._visited.add(hash(cursor))
        return cursor

    async def _wait(self, error: HttpError) -> None:
        """Wait before the next request. Raises the error if there shall be none."""
        walk = self._walk
        self._unanswered += not may_be_the_page(error)
        hopeless = walk.stuck or walk.failed_checks or self._unanswered >= (self._tries or 0)
        if self._tries is not None and hopeless:
            raise error
        self._backoff, seconds = self._backoff.failed(trio.current_time())
        searching = walk.searching and may_be_the_page(error)
        if walk.stuck:
            seconds = min(STUCK_SECONDS[1], STUCK_SECONDS[0] * self._backoff.failures)
        elif searching:
            seconds = min(1.0, seconds) * SEARCH_SECONDS
        seconds = error.retry_after or seconds
        self._failed(ListingFailure(str(error), seconds, walk.stuck, searching))
        await trio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Relisted:
    """The rest of an unlistable range: ranges that failed again, and one that was not tried."""

    failed: list[UnlistableRange]
    untried: UnlistableRange | None


async def relist(
    fetch: FetchPage,
    missing: UnlistableRange,
    take: Callable[[tuple[ListedRepo, ...]], Awaitable[object]],
) -> Relisted:
    """Ask for all of a range again, and hand over each page that the host serves now.

    Raises HttpError where the host fails in a way that has nothing to do with a page.
    """
    left: list[UnlistableRange] = []
    at, limit = missing.start, min(PAGE_REPOS, missing.end - missing.start)
    for _ in range(MAX_RELIST_REQUESTS):
        if at >= missing.end:
            break
        try:
            page = await fetch(str(at), min(limit, missing.end - at))
        except HttpError as error:
            if not may_be_the_page(error):
                raise
            if limit > 1:
                limit //= 2
                continue
            begin = left.pop().start if left and left[-1].end == at else at
            at += 1
            left.append(UnlistableRange(begin, at))
        else:
            await take(page.repos)
            limit = min(PAGE_REPOS, limit * 2)
            # A cursor that is no number, and the end of the listing, lie behind the range.
            number = None if page.cursor is None else _number(page.cursor)
            at = missing.end if number is None else max(at + 1, number)
    return Relisted(left, UnlistableRange(at, missing.end) if at < missing.end else None)


def may_be_the_page(error: HttpError) -> bool:
    """Return whether another page could work where this one failed."""
    if error.kind == "status":
        return error.retry_after is None and error.status in {400, 500, 502, 504}
    return error.kind in {"malformed", "too_big", "timeout"}


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A page to ask for."""

    cursor: str | None
    limit: int


class _Phase(Enum):
    PAGES = auto()  # as usual, with pages of any size
    CHECK = auto()  # does the host list anything at all?
    PROBE = auto()  # looking for a cursor that works
    BISECT = auto()  # looking for the first one between one that fails and one that works
    RECHECK = auto()  # does the broken one still fail, now that another one works?


class Walk:
    """The next page that a listing asks for. Pure.

    Ask for `request`, then call `worked` or `failed`, and `move` when the page is stored.
    """

    def __init__(self, cursor: str | None = None, page_size: int = PAGE_REPOS) -> None:
        self.cursor = cursor
        self.failed_checks = 0  # requests for a page that is known to work, since the last page
        self._page_size = self._limit = page_size
        self._phase = _Phase.PAGES
        self._failures = 0  # since the last page that came, or the last change
        self._streak = 0  # pages in a row
        self._low = self._high = 0  # the highest cursor that fails, the lowest that works
        self._good: str | None = None  # a cursor with a page that came

    @property
    def stuck(self) -> bool:
        """Whether one repo fails and no cursor behind it can be worked out."""
        return self._limit == 1 and self._failures >= TRIES and self._number is None

    @property
    def numbered(self) -> bool:
        """Whether cursors behind the present one can be worked out."""
        return self._number is not None

    @property
    def searching(self) -> bool:
        """Whether answers tell where the broken repo is; a host that is down is waited for."""
        shrinking = self._limit < self._page_size and not self.failed_checks
        return self._phase is not _Phase.PAGES or shrinking

    def request(self) -> PageRequest:
        """Return the page to ask for."""
        match self._phase:
            case _Phase.PAGES:
                return PageRequest(self.cursor, self._limit)
            case _Phase.CHECK:
                return PageRequest(self._good, 1)
            case _Phase.RECHECK:
                return PageRequest(self.cursor, 1)
            case _Phase.BISECT:
                return PageRequest(str((self._low + self._high) // 2), 1)
        return PageRequest(str(self._next_probe()), 1)

    def move(self, cursor: str, *, good: bool = True) -> None:
        """Go on at a cursor; `good` if the page at the last one was served."""
        if good:
            self._good = self.cursor
        self.cursor = cursor
        self._phase, self._failures = _Phase.PAGES, 0
        self._low = self.failed_checks = 0

    def worked(self) -> bool:
        """Note an answer; tell whether its repos are those that follow on `cursor`."""
        match self._phase:
            case _Phase.PAGES | _Phase.RECHECK:
                self._phase, self._failures = _Phase.PAGES, 0
                self._streak += 1
                if self._streak >= GROW_AFTER and self._limit < self._page_size:
                    self._limit, self._streak = min(self._page_size, self._limit * 2), 0
                return True
            case _Phase.CHECK:
                self._phase, self._failures = _Phase.PROBE, 0
            case _Phase.PROBE:
                self._high = self._next_probe()
                self._narrow()
            case _Phase.BISECT:
                self._high = (self._low + self._high) // 2
                self._narrow()
        return False

    def failed(self) -> UnlistableRange | None:
        """Note a failure; return the range that cannot be listed once its extent is known.

        Then `move` to its end when it is stored.
        """
        self._failures += 1
        self._streak = 0
        match self._phase:
            case _Phase.PAGES:
                self._page_failed()
            case _Phase.CHECK:
                # Most likely the host is down; but the page asked for may be broken as well.
                self.failed_checks += 1
                patient = self.failed_checks % TRIES != 0
                self._phase, self._failures = _Phase.PAGES if patient else _Phase.PROBE, 0
            case _Phase.PROBE:
                self._low = self._next_probe()
                if self._low - self._start > _FARTHEST:  # these are no numbers of repos
                    self._phase, self._failures, self._low = _Phase.PAGES, 0, 0
                elif self._failures % CHECK_EVERY == 0:
                    self._phase = _Phase.CHECK
            case _Phase.BISECT:
                self._low = (self._low + self._high) // 2
                self._narrow()
            case _Phase.RECHECK:
                return UnlistableRange(self._start, self._high)
        return None

    def _page_failed(self) -> None:
        if self._limit > 1:
            if self._limit < self._page_size or self._failures >= TRIES - 1:
                self._limit, self._failures = self._limit // 2, 0
        elif self._failures >= TRIES and self._number is not None:
            self._low = max(self._low, self._start)
            self._phase = _Phase.CHECK if self.cursor is not None else _Phase.PROBE

    def _next_probe(self) -> int:
        distance = self._low - self._start
        return self._low + 1 if distance < LINEAR else self._start + 2 * distance

    def _narrow(self) -> None:
        adjacent = self._high - self._low <= 1
        self._phase = _Phase.RECHECK if adjacent else _Phase.BISECT

    @property
    def _number(self) -> int | None:
        """The cursor as a number; the beginning is 0."""
        if self.cursor is None:
            return 0
        return _number(self.cursor)

    @property
    def _start(self) -> int:
        return self._number or 0


def _number(cursor: str) -> int | None:
    """Return a cursor as a number; None for another text, or one beyond all numbers of repos."""
    usable = cursor.isascii() and cursor.isdigit() and len(cursor) <= 15
    return int(cursor) if usable else None


async def _page(
    http: HttpClient, endpoint: Endpoint, name: str, cursor: str | None, limit: int
) -> Page:
    query = f"limit={limit}" + (f"&cursor={quote(cursor, safe='')}" if cursor else "")
    joint = "&" if "?" in name else "?"
    url = endpoint.http_url(f"/xrpc/com.atproto.sync.{name}{joint}{query}")
    body = await http.get_json(url, max_bytes=MAX_PAGE_BYTES, total_seconds=60.0, trusted=True)
    return read_page(body, url)


def read_page(body: object, url: str) -> Page:
    """Read the answer of a host, malformed entries left out. Raises HttpError without a list."""
    if not isinstance(body, dict) or not isinstance(repos := body.get("repos"), list):
        raise HttpError("malformed", f"{url} has no list of repos")
    following = body.get("cursor")
    found = tuple(found for item in repos if (found := _listed(item)) is not None)
    return Page(
        found,
        following if isinstance(following, str) and following else None,
        len(repos) - len(found),
    )


def _listed(item: object) -> ListedRepo | None:
    if not isinstance(item, dict):
        return None
    did, rev, active, status = (item.get(key) for key in ("did", "rev", "active", "status"))
    if not isinstance(did, str) or not is_did(did):
        return None
    return ListedRepo(
        did,
        rev if isinstance(rev, str) else "",
        active if isinstance(active, bool) else True,
        status if isinstance(status, str) else None,
    )
