"""One attempt at a repo job: `Attempts.carry_out` is the algorithm, from stream entry to ack.

    entry -> job -> blocked? -> current? -> fetch -> verify -> changes -> close -> outcome
        -> acknowledged

The helpers below `Attempts` have no other user.

Correctness rests on two orders. The outcome is written before the entry is acknowledged, so a crash
in between repeats an attempt (which finds the repo current) but never loses an outcome. And
`apply_repo` queues deletions, creates and the closing event in the order that `repos/changes.py`
explains, so a crash between batches leaves the repo without a new complete rev and the next attempt
queues everything again.
"""

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal, TypeVar

import trio

from rsky_pipeline.atproto.datetimes import format_utc
from rsky_pipeline.atproto.syntax import is_did, is_tid, split_path
from rsky_pipeline.backfiller.jobs import JobQueue
from rsky_pipeline.backfiller.store import Output, RepoOutcome
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.selection import SelectionReader
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.repos.changes import apply_repo
from rsky_pipeline.repos.entries import (
    BATCH_RECORDS,
    closing_entry,
    create_entries,
    delete_entries,
)
from rsky_pipeline.repos.fetch import HOST_REASONS, Fetcher, require_kept
from rsky_pipeline.repos.hosts import HostBusyError
from rsky_pipeline.repos.repo import BLOCKED, Repo, RepoError, RepoPaths, list_paths
from rsky_pipeline.repos.stored import StoredRevs, absent_paths, have_older, stored_revs
from rsky_pipeline.runtime.backoff import bound
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.coalescer import Coalescer
from rsky_pipeline.runtime.errors import described
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.runtime.threads import in_thread
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.consumer import Delivery
from rsky_pipeline.streams.event import MalformedEventError
from rsky_pipeline.streams.repo_job import REPO_FIELD, FetchReason, RepoJob, decode_repo_job

_log = logging.getLogger(__name__)
INVALID_ATTEMPTS = 3  # a repo that is invalid three times in a row is not a transfer error
# "There is no such account" of the directory, or "it has no PDS" or "no key": mirrors lag behind
# exactly when an account is born. With the default pauses the last of these is two minutes later.
NEGATIVE_ATTEMPTS = 6
_NEGATIVE = frozenset({"did_not_found", "no_pds", "no_key"})
FIRST_LOOK_SECONDS, MOST_SECONDS = 2.0, 600.0  # backoff between two settle checks of a repo
SMALL_REPO = 64 * 1024  # bytes of a CAR that unpacks within a millisecond or two
_VERIFICATION = frozenset({"wrong_did", "bad_signature", "no_key"})
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BroughtIn:
    """A successful attempt: the whole repo is queued, or it was current (`unchanged`).

    `settles`: older states of its records may still be queued elsewhere, so the job comes back
    once this rev is stored, to check for rows that such an event has restored.
    """

    rev: str
    host: str = ""
    records: int = 0
    deletes: int = 0
    bytes: int = 0
    unchanged: bool = False
    settles: bool = False
    history: str | None = None  # of Redis, in which the events were queued


class LostWritesError(Exception):
    """Another server has become the primary, and may lack events of the repo: begin anew."""


class NotStoredError(Exception):
    """The queued events of a repo are not stored yet; retry the settle check after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not stored yet, next check in {seconds:.0f} s")
        self.seconds = seconds


class Attempts:
    """Runs many repo jobs concurrently, on the connections and budgets of its worker."""

    def __init__(
        self, settings: Settings, jobs: JobQueue, lookups: Link[Database], fetcher: Fetcher,
        output: Output, outcomes: Coalescer[RepoOutcome, None], metrics: BackfillerMetrics,
        reader: SelectionReader,
    ) -> None:  # fmt: skip
        self.settings = settings
        self._jobs = jobs
        self.lookups = lookups
        self._reader = reader
        self._stored: Coalescer[str, StoredRevs] = Coalescer(
            lambda dids: lookups.retry(lambda database: self._look_up(database, dids))
        )
        self.have_older: Coalescer[tuple[str, str], bool] = Coalescer(
            lambda repos: lookups.retry(lambda database: have_older(database, repos))
        )
        self.fetcher = fetcher
        self.output = output
        self._outcomes = outcomes
        self.metrics = metrics
        self._boundary = Boundary()  # no counter of its own: `_fail` counts every failure by reason
        self._log = ThrottledLog(_log)
        self._threads = trio.CapacityLimiter(1)  # holds the GIL: more gain nothing
        self.finished = 0

    def _look_up(self, database: Database, dids: Sequence[str]) -> list[StoredRevs]:
        """Return the stored revs of repos, after a look at the present blocks."""
        self._reader.refresh(database)
        return stored_revs(database, dids)

    def require_kept(self, did: str, pds: str = "") -> None:
        """Raise RepoError if an account or its PDS is blocked."""
        require_kept(self._reader.selection, did, pds)

    async def carry_out(self, delivery: Delivery) -> None:
        """Attempt a repo once, then acknowledge, postpone or dead-letter its entry.

        The outcome is stored before the entry is acknowledged, so every repo has one: a worker
        killed in between gets the same entry again after its restart, and finds the repo current.
        If the outcome cannot be stored, the entry stays pending until it is reclaimed as idle.

        Redis replicates asynchronously: a replica that is promoted meanwhile may lack events of the
        repo that the old primary took. To acknowledge the entry there would lose them, and to close
        the repo would keep them from being repaired. So both are done only in the history in which
        the first events were queued; in another one the attempt begins anew.
        """
        if delivery.fields is None:
            await self._jobs.finish(delivery)
            return
        if delivery.crashes_workers(self.settings.max_deliveries):
            text = f"{delivery.deaths} workers ended while they tried it alone"
            await self._jobs.dead_letter(delivery, "crashes_worker", text, 0)
            return
        try:
            job = decode_repo_job(delivery.fields.get(REPO_FIELD, b""))
            if not is_did(job.did):
                raise MalformedEventError("invalid_did", job.did[:100])
        except MalformedEventError as error:
            self.metrics.count_failure("malformed_job")
            await self._jobs.dead_letter(delivery, error.reason, str(error), 0)
            return
        began = trio.current_time()
        try:
            try:
                done = await self._bring_in(job)
            except NotStoredError as early:
                again = replace(job, settles=job.settles + 1)
                await self._jobs.postpone(delivery, early.seconds, again)
            except HostBusyError as busy:
                await self._put_off(delivery, job, busy)
            except RepoError as failure:
                if failure.reason == BLOCKED:
                    await self._leave_out(delivery, job, failure)
                else:
                    await self._fail(delivery, job, failure, trio.current_time() - began)
            except LostWritesError:
                raise  # not the fault of this repo
            except Exception as error:  # noqa: BLE001 - see runtime.boundary
                self._boundary.caught(error, "repo", did=job.did)
                message = described(error)
                unknown = RepoError("transient", "internal_error", message)
                await self._fail(delivery, job, unknown, trio.current_time() - began)
            else:
                await self._succeed(delivery, job, done, trio.current_time() - began)
        except LostWritesError:
            text = "Redis failed over and may lack events of a repo; fetching it again"
            self._log.warning(text, did=job.did)
            await self.carry_out(delivery)
        except Exception as error:  # noqa: BLE001 - its outcome could not be stored
            self._boundary.caught(error, "outcome", did=job.did)
            self._jobs.release(delivery)

    async def _bring_in(self, job: RepoJob) -> BroughtIn:
        """Fetch, verify and queue the repo unless it is current.

        Raises RepoError, HostBusyError, NotStoredError and LostWritesError.
        """
        stored = await self._stored.call(job.did)
        self.require_kept(job.did)
        if job.settles:
            if await self._is_settled(job, stored):
                return BroughtIn(job.rev, unchanged=True)
        elif (current := await self._current(job, stored)) is not None:
            return current
        # Resolves the DID, waits for a turn at the PDS, downloads the CAR, checks the signature.
        fresh = bool(job.attempts or job.failing)
        async with self.fetcher.fetch(job.did, fresh=fresh, patient=job.forced) as repo:
            rev = repo.commit.rev
            if not is_tid(rev):
                self.metrics.short_revs.inc()
            known = max(job.rev if job.deleted else "", stored.highest)
            if rev < known:
                # Records it holds may be deleted since, records it lacks may be newer than it.
                message = f"the PDS serves rev {rev}, older than the known rev {known}"
                raise RepoError("transient", "stale_repo", message, host=repo.host)
            # Walks the whole tree and reads every record.
            paths = await self.compute(repo, partial(list_paths, repo))
            sink = _StreamSink(self, paths)
            named = (path for path in job.deleted if split_path(path) is not None)
            deletes = await apply_repo(paths, sink, named)  # its order matters: see there
        # States older than `rev` may be queued and not stored yet: live events, if a commit was
        # missed while the repo was followed, or events of an earlier job that is not closed yet.
        followed = bool(job.deleted) or job.reason.followed
        late = followed or (stored.complete or "") < (stored.queued or "") < rev
        settles = late and not job.settles
        return BroughtIn(
            rev, repo.host, sink.records, deletes, repo.size, settles=settles, history=sink.history
        )

    async def _current(self, job: RepoJob, stored: StoredRevs) -> BroughtIn | None:
        """Return an outcome if the repo need not be fetched. Raises RepoError and HostBusyError.

        A repo without a complete rev was never stored as a whole, however new its newest commit is:
        live commits alone advance `newest`. A forced job means that a commit below the newest one
        may be missing, so it compares only the complete rev, and skips the repo only if the PDS
        serves exactly that rev.
        """
        if stored.complete is None:
            return None
        if not job.forced:
            rev, host = (job.rev, "") if job.rev else await self._rev_at_pds(job)
            current = rev is not None and rev <= stored.highest
            return BroughtIn(stored.highest, host, unchanged=True) if current else None
        if job.deleted or not job.reason.confirmable or job.rev > stored.complete:
            return None
        rev, host = await self._rev_at_pds(job)
        return BroughtIn(stored.complete, host, unchanged=True) if rev == stored.complete else None

    async def _rev_at_pds(self, job: RepoJob) -> tuple[str | None, str]:
        """Request the rev of a repo from its PDS; returns it (or None) and the host.

        None means that the error concerns the account, for example RepoNotFound: only a fetch
        resolves the DID again and finds the PDS that the account has moved to. Raises RepoError for
        failures of the host, and HostBusyError.
        """
        try:
            return await self.fetcher.rev(job.did)
        except RepoError as failure:
            if failure.kind == "rate_limited" or failure.reason in HOST_REASONS:
                raise
            return None, ""

    async def _is_settled(self, job: RepoJob, stored: StoredRevs) -> bool:
        """Return whether no row older than the stored repo is left.

        Once the repo is stored at `job.rev`, the indexer rejects older states as stale (see
        `apply_repo`). One that was stored between this worker's query for absent paths and that
        moment is found only by this check. Raises NotStoredError before the repo is stored.
        """
        if stored.complete is None or stored.complete < job.rev:
            raise NotStoredError(settle_pause(job.settles + 1))
        return not await self.have_older.call((job.did, stored.complete))

    async def _succeed(
        self, delivery: Delivery, job: RepoJob, done: BroughtIn, seconds: float
    ) -> None:
        if done.unchanged and job.settles:
            await self._jobs.finish(delivery)  # the first attempt stored the outcome
            return
        outcome = RepoOutcome(
            job.did, "done", reason="unchanged" if done.unchanged else None, rev=done.rev,
            host=done.host or None, attempts=job.attempts + (not done.unchanged),
            records=None if done.unchanged else done.records,
            deletes=None if done.unchanged else done.deletes,
            bytes=None if done.unchanged else done.bytes, seconds=seconds,
        )  # fmt: skip
        await self._outcomes.call(outcome)
        if done.settles:
            again = replace(
                job, rev=done.rev, deleted=(), reason=FetchReason.SETTLE, attempts=0, settles=1
            )
            ended = await self._jobs.postpone(delivery, settle_pause(1), again, done.history)
        else:
            ended = await self._jobs.finish(delivery, done.history)
        if not ended:
            raise LostWritesError
        self.finished += 1
        self.metrics.processed.inc()
        self.metrics.outcomes.labels("unchanged" if done.unchanged else "done").inc()

    async def _leave_out(self, delivery: Delivery, job: RepoJob, failure: RepoError) -> None:
        """End a job whose account or host is blocked; `block remove` queues its repo again."""
        outcome = RepoOutcome(
            job.did, "unavailable", failure.kind, BLOCKED, str(failure), host=failure.host or None,
            attempts=job.attempts,
        )  # fmt: skip
        await self._outcomes.call(outcome)
        await self._jobs.finish(delivery)
        self.finished += 1
        self.metrics.processed.inc()
        self.metrics.blocked.labels(failure.mark).inc()
        self.metrics.outcomes.labels(BLOCKED).inc()

    async def _put_off(self, delivery: Delivery, job: RepoJob, busy: HostBusyError) -> None:
        """Postpone a job until its host has a turn; counts as an attempt only if it is parked."""
        if busy.problem:
            failure = RepoError(
                "transient", "host_parked", str(busy), busy.seconds, busy.host, of_host=True
            )
            await self._fail(delivery, job, failure, 0.0)
            return
        self.metrics.postponed.inc()
        await self._jobs.postpone(delivery, busy.seconds, job)

    async def _fail(
        self, delivery: Delivery, job: RepoJob, failure: RepoError, seconds: float
    ) -> None:
        """Apply `decide`: postpone the job, mark the repo unavailable, or dead-letter the entry."""
        decision = decide(job, failure, self.settings)
        self._count(failure)
        # Rate limits recur, and are not failures: they must not overwrite the stored outcome.
        if failure.kind != "rate_limited":
            await self._outcomes.call(_failed(job, failure, decision, seconds))
        match decision.action:
            case "wait":
                again = replace(
                    job, attempts=decision.attempts, failing=decision.failing,
                    in_row=decision.in_row, since=decision.since,
                )  # fmt: skip
                await self._jobs.postpone(delivery, decision.seconds, again)
                self.metrics.retries.inc()
            case "unavailable":
                self.metrics.skipped.inc()
                await self._jobs.finish(delivery)
                self.finished += 1
                self.metrics.processed.inc()
                self.metrics.outcomes.labels("unavailable").inc()
                self._log.info("repo unavailable", key=failure.reason, did=job.did,
                               reason=failure.reason)  # fmt: skip
            case "dead_letter":
                text = f"{job.did}: {failure}"
                await self._jobs.dead_letter(delivery, failure.reason, text, decision.attempts)
                self.metrics.outcomes.labels("failed").inc()

    def _count(self, failure: RepoError) -> None:
        metrics = self.metrics
        metrics.count_failure(failure.reason, failure.kind)
        if failure.reason in _VERIFICATION:
            metrics.verification_errors.inc()
        elif failure.kind == "invalid":
            metrics.parse_errors.inc()
        else:
            metrics.fetch_errors.inc()

    async def compute(self, repo: Repo, function: Callable[[], Result]) -> Result:
        """Run CPU-bound work; in a thread if the repo is large, so that the event loop goes on."""
        if repo.size <= SMALL_REPO:
            await trio.lowlevel.checkpoint()
            return function()
        return await in_thread(function, limiter=self._threads)


@dataclass(slots=True)
class _StreamSink:
    """Appends the changes of one repo to `firehose_backfill`; see `RepoSink`."""

    attempts: Attempts
    paths: RepoPaths
    time: str = field(default_factory=lambda: format_utc(datetime.now(UTC)))
    last: list[Entry] = field(default_factory=list)  # the batch of creates that `close` appends
    records: int = 0
    history: str | None = None  # of Redis, in which the first batch was queued

    async def absent(self, after: str) -> list[str]:
        """Query absent paths, after a cheap batched query whether older rows exist at all."""
        commit = self.paths.repo.commit
        if not after and not await self.attempts.have_older.call((commit.did, commit.rev)):
            return []
        query = partial(absent_paths, paths=self.paths, after=after)
        return await self.attempts.lookups.retry(query)

    async def delete(self, paths: Sequence[str]) -> None:
        """Queue deletions."""
        for start in range(0, len(paths), BATCH_RECORDS):
            part = paths[start : start + BATCH_RECORDS]
            await self._append(delete_entries(self.paths.repo, part, self.time))
        self.attempts.metrics.deletes.inc(len(paths))

    async def put(self) -> None:
        """Queue the creates; the last batch is kept for `close`."""
        repo, metrics = self.paths.repo, self.attempts.metrics
        source = create_entries(repo, self.paths, self.attempts.settings.collections, self.time)
        while batch := await self.attempts.compute(repo, lambda: next(source, None)):
            self.records += len(batch.entries)
            if batch.is_last:
                self.last = batch.entries
            else:
                await self._append(batch.entries)
            metrics.filtered.inc(batch.filtered)
            metrics.unreadable.inc(batch.unreadable)

    async def close(self) -> bool:
        """Queue the last creates and the closing event, all or none."""
        await self._append([*self.last, closing_entry(self.paths.repo, self.time)])
        self.attempts.metrics.records.inc(self.records)
        return True

    async def _append(self, entries: Sequence[Entry]) -> None:
        repo = self.paths.repo
        self.attempts.require_kept(repo.commit.did, repo.host)
        self.history = await self.attempts.output.append(entries, self.history)
        if self.history is None:
            raise LostWritesError


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """How to continue after a failed attempt.

    `attempts`, `failing`, `in_row` and `since` are those of the job from here on; `seconds` is the
    pause of "wait".
    """

    action: Literal["wait", "unavailable", "dead_letter"]
    attempts: int
    seconds: float = 0.0
    failing: str = ""
    in_row: int = 0
    since: int = 0


def decide(
    job: RepoJob, failure: RepoError, settings: Settings,
    draw: Callable[[], float] = random.random, clock: Callable[[], float] = time.time,
) -> RetryDecision:  # fmt: skip
    """Decide between retry, "unavailable" and a dead letter; no other code decides this.

    A repo is given up only by evidence about that repo. The trouble of a host is waited for, for
    `backfiller_host_patience_hours`; it counts no attempt. Of broken repos and negative answers
    several in a row have to be the same, as something else in between says that the first one was
    an accident. Retries back off exponentially with jitter, and never come before
    `failure.retry_after`.
    """
    if failure.kind == "rate_limited":  # not a failure: nothing changes
        pause = _pause(max(job.attempts, 1), failure, settings, draw)
        return RetryDecision("wait", job.attempts, pause, job.failing, job.in_row, job.since)
    attempts, now = job.attempts + (not failure.of_host), int(clock())
    again = failure.mark == job.failing
    in_row, since = (job.in_row + 1, job.since or now) if again else (1, now)
    if failure.of_host:
        patience = settings.backfiller_host_patience_hours * 3_600
        given_up = in_row >= settings.backfiller_max_attempts and now - since >= patience
        # Only a job of a repair is lost with its entry; a listing finds the others again.
        action: Literal["unavailable", "dead_letter"] = (
            "dead_letter" if job.repair else "unavailable"
        )
    elif failure.kind == "permanent":
        given_up = failure.reason not in _NEGATIVE or in_row >= NEGATIVE_ATTEMPTS
        # `job.deleted` is recorded nowhere else: acknowledging the entry would lose the deletions.
        action = "dead_letter" if job.deleted else "unavailable"
    else:
        in_a_row = settings.backfiller_max_attempts
        if failure.kind == "invalid":
            enough = NEGATIVE_ATTEMPTS if failure.reason in _NEGATIVE else INVALID_ATTEMPTS
            in_a_row = min(in_a_row, enough)
        given_up = in_row >= in_a_row or attempts >= settings.backfiller_max_attempts
        action = "dead_letter"
    if given_up:
        return RetryDecision(action, attempts)
    pause = _pause(in_row if failure.of_host else attempts, failure, settings, draw)
    return RetryDecision("wait", attempts, pause, failure.mark, in_row, since)


def _pause(
    attempt: int, failure: RepoError, settings: Settings, draw: Callable[[], float]
) -> float:
    base, cap = settings.backfiller_retry_initial_ms, settings.backfiller_retry_max_ms
    pause = bound(attempt, base / 1000, cap / 1000) * (0.5 + draw() / 2)
    return max(pause, failure.retry_after or 0.0)


def settle_pause(look: int) -> float:
    """Return the seconds before the n-th settle check of a repo."""
    return bound(look, FIRST_LOOK_SECONDS, MOST_SECONDS)


def _failed(
    job: RepoJob, failure: RepoError, decision: RetryDecision, seconds: float
) -> RepoOutcome:
    base = RepoOutcome(
        job.did, "failed", failure.kind, failure.reason, str(failure), host=failure.host or None,
        attempts=decision.attempts, seconds=seconds,
    )  # fmt: skip
    match decision.action:
        case "wait":
            due = datetime.now(UTC) + timedelta(seconds=decision.seconds)
            return replace(base, status="waiting", next_attempt_at=due)
        case "unavailable":
            return replace(base, status="unavailable")
    return base
