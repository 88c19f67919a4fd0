"""One attempt at one repo: fetch, verify, and queue every record before the closing event."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar, TypeVarTuple, Unpack

import trio

from rsky_pipeline.atproto.datetimes import format_utc
from rsky_pipeline.atproto.syntax import split_path
from rsky_pipeline.backfiller.fetch import HOST_REASONS, Fetcher
from rsky_pipeline.backfiller.ledger import Stored
from rsky_pipeline.backfiller.outcome import Done, NotStored, RepoFailed
from rsky_pipeline.backfiller.output import Output
from rsky_pipeline.backfiller.reconcile import absent
from rsky_pipeline.backfiller.states import Knowledge
from rsky_pipeline.backfiller.unpack import (
    CHUNK_RECORDS,
    Chunk,
    Paths,
    PathsOnly,
    Repo,
    closing_entry,
    creates,
    deletes,
    list_paths,
)
from rsky_pipeline.runtime.backoff import bound
from rsky_pipeline.runtime.threads import in_thread
from rsky_pipeline.streams.repo_job import RepoJob

FIRST_LOOK_SECONDS, MOST_SECONDS = 2.0, 600.0  # pauses before a repo is looked at again
SMALL_REPO = 64 * 1024  # bytes of a CAR that takes a millisecond or two
Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class Attempt:
    """Carries out attempts; the settings and connections are the worker's."""

    def __init__(self, fetcher: Fetcher, output: Output, knowledge: Knowledge) -> None:
        self._fetcher = fetcher
        self._output = output
        self._knowledge = knowledge
        self._threads = trio.CapacityLimiter(1)  # unpacking is CPU work under one lock anyway

    def report(self) -> None:
        """Set the gauges of what goes on beside the attempts."""
        self._fetcher.report()

    async def run(self, job: RepoJob) -> Done:
        """Bring in a repo. Raises RepoFailed, HostBusy and NotStored."""
        known = await self._knowledge.stored(job.did)
        if job.settles:
            if await self._is_settled(job, known):
                return Done(job.rev, unchanged=True)
        elif (current := await self._current(job, known)) is not None:
            return current
        async with self._fetcher.fetch(job.did, fresh=job.attempts > 0) as repo:
            _require_recent(repo, job, known.newest_rev)
            done = await self._queue(repo, job)
            return replace(done, settles=not job.settles and _may_be_late(job, known, done.rev))

    async def _current(self, job: RepoJob, known: Stored) -> Done | None:
        """Return an outcome if the repo need not be fetched. Raises RepoFailed and HostBusy.

        Without a floor it was never stored as a whole, however new its newest commit is. Where a
        commit may be missing below the newest one, only the floor counts, and only if it is the
        very rev that the PDS has.
        """
        if known.floor is None:
            return None
        if not job.forced:
            rev, host = (job.rev, "") if job.rev else await self._rev_at_pds(job)
            current = rev is not None and rev <= known.newest_rev
            return Done(known.newest_rev, host, unchanged=True) if current else None
        if job.deleted or not job.reason.confirmable or job.rev > known.floor:
            return None
        rev, host = await self._rev_at_pds(job)
        return Done(known.floor, host, unchanged=True) if rev == known.floor else None

    async def _rev_at_pds(self, job: RepoJob) -> tuple[str | None, str]:
        """Ask an account's PDS for the rev of its repo; None where the repo has to be fetched.

        That is where the answer is about the account: fetching looks for a new home of it. Raises
        RepoFailed where the host is in trouble, and HostBusy.
        """
        try:
            return await self._fetcher.rev(job.did)
        except RepoFailed as failure:
            if failure.kind == "rate_limited" or failure.reason in HOST_REASONS:
                raise
            return None, ""

    async def _is_settled(self, job: RepoJob, known: Stored) -> bool:
        """Tell whether nothing is left of before a repo was stored at its rev.

        From then on older states are stale whoever writes them (see the indexer's floors), but
        some may have been stored after this worker looked for what the repo no longer holds.
        Raises NotStored.
        """
        if known.floor is None or known.floor < job.rev:
            raise NotStored(settle_pause(job.settles + 1))
        return not await self._knowledge.has_older(job.did, known.floor)

    async def _queue(self, repo: Repo, job: RepoJob) -> Done:
        time = format_utc(datetime.now(UTC))
        paths = await self._compute(repo, list_paths, repo)
        gone = await self._queue_deletes(repo, paths, job, time)
        records = 0
        source = creates(repo, paths, self._fetcher.settings.collections, time)
        while chunk := await self._compute(repo, _next, source):
            records += len(chunk.entries)
            if chunk.is_last:  # the last records and the closing event are appended all or none
                chunk.entries.append(closing_entry(repo, time))
            await self._append(chunk)
        self._fetcher.metrics.records.inc(records)
        return Done(repo.commit.rev, repo.host, records, gone, repo.size)

    async def _queue_deletes(self, repo: Repo, paths: Paths, job: RepoJob, time: str) -> int:
        """Queue the deletion of what is stored, or was to be checked, and the tree does not hold.

        Before any create: where a worker is killed in between, the rest follows with the next
        attempt, and what was deleted is not stored again by this repo.
        """
        named = sorted(path for path in set(job.deleted) if split_path(path) is not None)
        gone = list(absent(named, (path for path, _ in paths))) if named else []
        count = await self._queue_gone(repo, gone, time)
        after = ""
        did, rev, held = repo.commit.did, repo.commit.rev, PathsOnly(paths)
        while page := await self._knowledge.gone(did, rev, held, after):
            count += await self._queue_gone(repo, page, time)
            after = page[-1]
        return count

    async def _queue_gone(self, repo: Repo, gone: list[str], time: str) -> int:
        for start in range(0, len(gone), CHUNK_RECORDS):
            await self._append(deletes(repo, gone[start : start + CHUNK_RECORDS], time))
        self._fetcher.metrics.deletes.inc(len(gone))
        return len(gone)

    async def _compute(
        self, repo: Repo, function: Callable[[Unpack[Arguments]], Result], *args: *Arguments
    ) -> Result:
        """Do CPU work, for a repo of some size in a thread, so that sockets are served."""
        if repo.size <= SMALL_REPO:
            await trio.lowlevel.checkpoint()
            return function(*args)
        return await in_thread(function, *args, limiter=self._threads)

    async def _append(self, chunk: Chunk) -> None:
        await self._output.append(chunk.entries)
        metrics = self._fetcher.metrics
        metrics.filtered.inc(chunk.filtered)
        metrics.unreadable.inc(chunk.unreadable)


def settle_pause(look: int) -> float:
    """Return the seconds before the n-th look at a repo that is being stored."""
    return bound(look, FIRST_LOOK_SECONDS, MOST_SECONDS)


def _may_be_late(job: RepoJob, known: Stored, rev: str) -> bool:
    """Tell whether states of a repo from before a rev may be queued and not stored yet.

    Live ones, where something was missed between commits that were followed; or those of an
    earlier job whose closing event is not applied.
    """
    followed = bool(job.deleted) or job.reason.followed
    return followed or (known.floor or "") < (known.queued or "") < rev


def _require_recent(repo: Repo, job: RepoJob, stored: str) -> None:
    """An older repo than is known of proves nothing: neither what it holds, nor what it lacks."""
    rev = repo.commit.rev
    known = max(job.rev if job.deleted else "", stored)
    if rev < known:
        message = f"the PDS serves rev {rev}, and {known} is known of"
        raise RepoFailed("transient", "stale_repo", message, host=repo.host)


def _next(source: Iterator[Chunk]) -> Chunk | None:
    return next(source, None)
