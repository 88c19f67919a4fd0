"""Existing repo jobs: retries failed ones, and cancels those that no worker has begun."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.operations import dead_letters
from rsky_pipeline.operations.backfill.adding import Adder, did_of
from rsky_pipeline.streams import names
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.dead_letters import DeadLetter
from rsky_pipeline.streams.event import MalformedEventError
from rsky_pipeline.streams.names import REPO_STREAMS
from rsky_pipeline.streams.repo_job import REPO_FIELD, decode_repo_job
from rsky_pipeline.streams.scan import StoredEntry, discard, newest, pages
from rsky_pipeline.streams.waiting import Waiting, all_waiting, hurry_waiting, remove_waiting


@dataclass(slots=True)
class RetriedRepos:
    """How many repos are tried again, and where they were."""

    letters: int = 0
    waiting: int = 0
    given_up: int = 0  # by the table alone

    @property
    def total(self) -> int:
        """All of them."""
        return self.letters + self.waiting + self.given_up


def retry(
    store: Store,
    settings: Settings,
    adder: Adder,
    given_up: Sequence[str],
    *,
    reason: str | None,
    dids: Sequence[str],
    tell: Callable[[str], None] = lambda _: None,
) -> RetriedRepos:
    """Requeue dead letters, make postponed jobs due, and queue `given_up` accounts.

    `reason` and `dids` select dead letters; postponed jobs are selected by DID only.
    Raises QueueFullError.
    """
    done, wanted = RetriedRepos(), frozenset(dids)
    retried: set[str] = set()

    def chosen(stream: str) -> Iterator[DeadLetter]:
        for letter in dead_letters.select(store, stream, reason):
            did = did_of(letter.fields.get(REPO_FIELD, b""))
            if not wanted or did in wanted:
                retried.add(did)
                yield letter

    for stream in REPO_STREAMS:
        letters = names.dead_letters(stream)
        done.letters += dead_letters.retry(store, letters, chosen(letters), settings, tell).retried
    if wanted:
        waiting = [each for each in all_waiting(store) if did_of(each.payload) in wanted]
        done.waiting = hurry_waiting(store, waiting)
        retried.update(did_of(each.payload) for each in waiting)
    before = adder.added.queued
    adder.add(did for did in given_up if did not in retried)
    done.given_up = adder.added.queued - before
    return done


@dataclass(slots=True)
class CancelledJobs:
    """The cancelled jobs, and those that were kept."""

    dids: list[str] = field(default_factory=list)
    running: int = 0  # a worker holds them: they end
    resyncs: int = 0  # live indexing needs them


def cancel(
    store: Store,
    dids: Collection[str] | None,
    *,
    resyncs: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> CancelledJobs:
    """Remove jobs, of these accounts or of all, that no worker has begun; one pass.

    Repairs of commits that live indexing missed stay unless `resyncs`, because nothing else would
    find those commits again. Jobs for history are removed: listing the repos again queues them.
    """
    done = CancelledJobs()
    for stream in REPO_STREAMS:
        last = newest(store, stream, 1)
        for page in pages(store, stream, until=last[0].id) if last else ():
            _cancel_page(store, stream, page, dids, resyncs, done)
            tell(f"{len(done.dids):,} cancelled")
    waiting = [each for each in all_waiting(store) if _wanted(each.payload, dids, resyncs, done)]
    unique: dict[bytes, Waiting] = {each.member: each for each in waiting}
    remove_waiting(store, list(unique.values()))
    done.dids += [decode_repo_job(each.payload).did for each in unique.values()]
    return done


def _cancel_page(
    store: Store, stream: str, page: list[StoredEntry], dids: Collection[str] | None,
    resyncs: bool, done: CancelledJobs,
) -> None:  # fmt: skip
    wanted = {
        entry.id: entry
        for entry in page
        if _wanted(entry.fields.get(REPO_FIELD, b""), dids, resyncs, done)
    }
    if not wanted:
        return
    unread = {
        item.id
        for item in discard(store, stream, list(wanted), "look").unfinished
        if item.state == "unread"
    }
    done.running += len(wanted) - len(unread)
    if unread:
        discard(store, stream, sorted(unread), "all")
        done.dids += [decode_repo_job(wanted[each].fields[REPO_FIELD]).did for each in unread]


def _wanted(
    payload: bytes, dids: Collection[str] | None, resyncs: bool, done: CancelledJobs
) -> bool:
    try:
        job = decode_repo_job(payload)
    except MalformedEventError:
        return False  # the backfiller makes it a dead letter
    if dids is not None and job.did not in dids:
        return False
    if job.repair and not resyncs:
        done.resyncs += 1
        return False
    return True
