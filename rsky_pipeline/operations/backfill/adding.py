"""Queueing repos that an operator names or a host lists, each once, below the high-water mark.

Blocking; `add_listed` runs a trio loop. A listing's cursor moves in the step that queues its page,
so that a listing that was interrupted goes on where it was, and no page is queued twice.
"""

import csv
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import trio

from rsky_pipeline.configuration.endpoints import Endpoint
from rsky_pipeline.configuration.selection import Selection
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.network.http import HttpClient
from rsky_pipeline.network.listing import (
    FetchPage,
    Listed,
    Lister,
    Unlistable,
    list_repos,
    list_repos_by_collection,
)
from rsky_pipeline.operations.subjects import NamedSubject, read_subject, resolve
from rsky_pipeline.streams.append import CursorMove, Entry, append, read_cursor
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.event import MalformedEventError
from rsky_pipeline.streams.names import (
    REPO_BACKFILL,
    REPO_BACKFILL_HIGH,
    REPO_BACKFILL_LOW,
    REPO_STREAMS,
)
from rsky_pipeline.streams.repo_job import (
    REPO_FIELD,
    FetchReason,
    RepoJob,
    decode_repo_job,
    encode_repo_job,
)
from rsky_pipeline.streams.scan import pages
from rsky_pipeline.streams.waiting import all_waiting

PRIORITIES = {"high": REPO_BACKFILL_HIGH, "normal": REPO_BACKFILL, "low": REPO_BACKFILL_LOW}
_BATCH_JOBS = 500
_FULL_POLL_SECONDS = 0.5
_REMEMBERED = 5_000_000  # accounts; one that comes again after more is queued again, which is safe
_EXAMPLES = 5
_TRIES = 5  # of a page of a listing
_MAX_LINE = 10_000  # characters


class QueueFullError(Exception):
    """The stream is at its high-water mark and the command was run without waiting."""


class ListingMovedError(Exception):
    """Somebody else goes on with the same listing."""


@dataclass(slots=True)
class AddedRepos:
    """The outcome for the requested accounts."""

    queued: int = 0
    duplicates: int = 0  # named more than once
    already_queued: int = 0  # at this priority or a higher one
    inactive: int = 0  # listed, and hidden by their host
    stored: int = 0  # queued by name though they are stored: fetched only where a PDS has more
    blocked: int = 0  # left out until `block remove`
    pages: int = 0
    unlistable: list[str] = field(default_factory=list)  # ranges of cursors that a host cannot list


class Adder:
    """Queues into one stream."""

    def __init__(
        self,
        store: Store,
        stream: str,
        mark: int,
        *,
        wait: bool = True,
        force: bool = False,
        count_stored: Callable[[Sequence[str]], int] = lambda dids: 0,
        tell: Callable[[str], object] = lambda _: None,
        selection: Selection | None = None,
    ) -> None:
        self._store = store
        self._selection = selection or Selection()
        self._stream = stream
        self._mark = mark
        self._wait = wait
        self._count_stored = count_stored
        self.reason = FetchReason.OPERATOR if force else FetchReason.LISTED
        self._tell = tell
        self._seen: set[str] = set()
        self._queued = frozenset[str]() if force else frozenset(queued(store, stream))
        self.added = AddedRepos()

    def add(self, dids: Iterable[str]) -> None:
        """Queue accounts. Raises QueueFullError; those before are queued then."""
        jobs = (RepoJob(did, "", "", None, True, reason=self.reason) for did in dids)
        while page := list(islice(jobs, _BATCH_JOBS)):
            fresh = self._fresh(page)
            if self.reason is FetchReason.LISTED:
                self.added.stored += self._count_stored([job.did for job in fresh])
            self._append(fresh, None)

    def add_page(self, jobs: Sequence[RepoJob], cursor_key: str, following: str) -> None:
        """Queue a page of a listing, and move its cursor with it.

        Raises QueueFullError and ListingMovedError.
        """
        active = [job for job in jobs if job.active]
        self.added.inactive += len(jobs) - len(active)
        self.added.pages += 1
        stored = read_cursor(self._store, cursor_key) or None
        self._append(self._fresh(active), CursorMove(cursor_key, stored, following))

    def _fresh(self, jobs: Iterable[RepoJob]) -> list[RepoJob]:
        if len(self._seen) > _REMEMBERED:
            self._seen.clear()
        fresh: list[RepoJob] = []
        for job in jobs:
            if job.did in self._seen:
                self.added.duplicates += 1
                continue
            self._seen.add(job.did)
            if not self._selection.keeps(job.did):
                self.added.blocked += 1
            elif job.did in self._queued:
                self.added.already_queued += 1
            else:
                fresh.append(job)
        return fresh

    def _append(self, jobs: Sequence[RepoJob], move: CursorMove | None) -> None:
        entries = [Entry(self._stream, REPO_FIELD, encode_repo_job(job)) for job in jobs]
        if not entries and move is None:
            return
        while True:
            marks = {self._stream: self._mark}
            result = append(self._store, entries, cursor=move, high_water_marks=marks)
            if result.status == "appended":
                self.added.queued += len(entries)
                self._tell(f"{self.added.queued:,} queued")
                return
            if result.status == "cursor_moved":
                raise ListingMovedError
            if not self._wait:
                raise QueueFullError(
                    f"{self._stream} is at its high-water mark ({self._mark:,} entries)"
                )
            self._tell(f"{self._stream} is at its high-water mark: waiting for the backfiller")
            time.sleep(_FULL_POLL_SECONDS)


def queued(store: Store, stream: str) -> Iterator[str]:
    """Yield the accounts that are queued in a stream, in a more urgent one, or for later."""
    for name in REPO_STREAMS[: REPO_STREAMS.index(stream) + 1]:
        for page in pages(store, name):
            yield from (did for entry in page if (did := did_of(entry.fields.get(REPO_FIELD, b""))))
    for each in all_waiting(store):
        did = did_of(each.payload)
        if did and b'"settles"' not in each.payload:  # such a job fetches nothing, as a rule
            yield did


def did_of(payload: bytes) -> str:
    """Return the account of a job's payload, empty where it cannot be read."""
    try:
        return decode_repo_job(payload).did
    except MalformedEventError:
        return ""


@dataclass(slots=True)
class RefusedNames:
    """Inputs that name no account: their number and the first few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        """Note one."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(what[:200])


def valid(names: Iterable[str], refused: RefusedNames, settings: Settings) -> Iterator[str]:
    """Yield the DIDs of accounts that are named by DID, handle, at-uri or link; note all others."""
    texts = iter(names)
    while page := [each.strip() for each in islice(texts, _BATCH_JOBS)]:
        subjects: dict[str, NamedSubject] = {}
        for text in filter(None, page):
            try:
                subjects[text] = read_subject(text)
            except ValueError:
                refused.add(text)
        found = resolve(settings, subjects.values())
        for text in page:
            account = subjects[text].account if text in subjects else ""
            if account in found.problems:
                refused.add(text)
            elif account:
                yield found.dids.get(account, account)


def from_file(path: Path) -> Iterator[str]:
    """Yield the names in a CSV file: of the column `did` if there is one, else the first.

    A file with a DID on each line is one too. Raises OSError.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        rows = csv.reader(line for line in lines if len(line) <= _MAX_LINE)
        column = 0
        for number, row in enumerate(rows):
            names = [cell.strip().lower() for cell in row]
            if number == 0 and "did" in names:
                column = names.index("did")
            elif len(row) > column and not row[column].startswith("#"):
                yield row[column]


def cursor_key(stream: str, endpoint: Endpoint, collection: str | None) -> str:
    """Return the key that keeps how far a listing was queued."""
    kind = f"collection:{collection}" if collection else "pds"
    return f"rsky_pipeline:backfill_add:{stream}:{kind}:{endpoint.key}"


def add_listed(
    adder: Adder, store: Store, settings: Settings, endpoint: Endpoint, key: str,
    collection: str | None, report: Callable[[Unlistable], object],
) -> None:  # fmt: skip
    """Queue all accounts of a PDS, or those of a relay that have records of a collection.

    Continues behind the stored cursor, and forgets it at the end. `report` is called with each
    range that the host cannot list. Raises HttpError when the host fails again and again, and
    the errors of `Adder.add_page`.
    """

    async def queue() -> None:
        async with HttpClient(
            allow_private=settings.allow_private_hosts, proxy=settings.proxy
        ) as http:
            fetch: FetchPage
            if collection is None:
                fetch = partial(list_repos, http, endpoint)
            else:
                fetch = partial(list_repos_by_collection, http, collection, endpoint)
            host, cursor = endpoint.http_url(), read_cursor(store, key) or None
            async for item in Lister(fetch, cursor, tries=_TRIES):
                jobs = list[RepoJob]()
                if isinstance(item, Listed):
                    jobs = [
                        RepoJob(
                            repo.did, host, repo.rev, repo.status, repo.active, reason=adder.reason
                        )
                        for repo in item.repos
                    ]
                else:
                    report(item)
                # Nothing else runs here: a blocking call holds nobody up.
                adder.add_page(jobs, key, item.following or "")

    trio.run(queue)
