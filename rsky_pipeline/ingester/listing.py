"""What all listings of a host have in common: their pace, how far they are, their figures."""

from dataclasses import asdict, dataclass, field

import orjson
import trio

from rsky_pipeline.observability.ingester import LISTED_STATUSES, IngesterMetrics
from rsky_pipeline.streams.connection import Store


class Pace:
    """Spreads the requests to one host evenly in time."""

    def __init__(self, requests_per_minute: int) -> None:
        self._interval = 60.0 / requests_per_minute
        self._next = 0.0

    async def wait(self) -> None:
        """Return when the next request may be made."""
        now = trio.current_time()
        due = max(now, self._next)
        self._next = due + self._interval
        await trio.sleep(due - now)


@dataclass(slots=True)
class Progress:
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
        """Take note of a page."""
        self.pages += 1
        self.repos += repos
        self.skipped += skipped
        self.cursor = cursor

    @classmethod
    def load(cls, store: Store, source: str, host: str) -> "Progress":
        """Return what was saved; what cannot be read counts as nothing."""
        value = store.call("GET", progress_key(source, host))
        try:
            return cls() if value is None else cls(**orjson.loads(value))
        except (ValueError, TypeError):
            return cls()

    def save(self, store: Store, source: str, host: str) -> None:
        """Write it down; it only informs, and tells when to begin again."""
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
    holes: int = 0
    problem: str | None = None
    progress: Progress = field(default_factory=Progress)

    def summary(self) -> str:
        """Return one line for people."""
        way = "done" if self.done else "stuck" if self.stuck else "running"
        so_far = self.progress
        return (
            f"{way}: {so_far.repos} repos in {so_far.pages} pages, {so_far.skipped} not active, "
            f"{self.holes} holes, cursor {so_far.cursor[:40] or 'at the beginning'}"
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
        self._is_main = source == "listRepos"

    def failed(self) -> None:
        """Count a request that failed."""
        self._metrics.fetch_errors.inc()
        self._failures.inc()

    def skip(self, status: str | None) -> None:
        """Count a repo that is not queued because its host would refuse it."""
        known = status if status in LISTED_STATUSES else "other"
        self._metrics.listing_skipped.labels(known).inc()

    def observe(self, state: EnumerationState) -> None:
        """Bring the gauges up to date."""
        self._repos.set(state.progress.repos)
        cursor = state.progress.cursor
        self._position.set(float(cursor) if cursor.isascii() and cursor.isdigit() else 0)
        self._done.set(state.done)
        self._stuck.set(state.stuck)
        if self._is_main:
            self._holes.set(state.holes)
