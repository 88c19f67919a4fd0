"""The loop of one backfiller: taking jobs, what becomes of each, and the drain."""

import logging
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import trio

from rsky_pipeline.backfiller.hosts import HostBusy
from rsky_pipeline.backfiller.jobs import Job, Jobs
from rsky_pipeline.backfiller.ledger import State
from rsky_pipeline.backfiller.outcome import Done, NotStored, RepoFailed, Verdict, judge
from rsky_pipeline.backfiller.states import States
from rsky_pipeline.backfiller.work import Attempt, settle_pause
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.health import Activity
from rsky_pipeline.runtime.logging import Throttled
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.repo_job import FetchReason, RepoJob

log = logging.getLogger(__name__)
HELD_FOR_EACH_SLOT = 8  # jobs in memory, most of which wait for their host or their directory
CLAIM_EVERY_SECONDS = 15.0
WAKE_EVERY_SECONDS = 0.5
HEALTH_EVERY_SECONDS = 5.0
DRAIN_SECONDS = 10.0
RELEASE_SECONDS = 2.0  # for a store that does not answer while the worker is stopping
SUSPECT_SECONDS = 5.0  # that an entry which may be deadly is alone before others are taken up
_VERIFICATION = frozenset({"wrong_did", "bad_signature", "no_key"})


class Worker:
    """Takes jobs, and settles every one of them in one way or another."""

    def __init__(
        self, context: WorkerContext, jobs: Jobs, attempt: Attempt, states: States,
        metrics: BackfillerMetrics,
    ) -> None:  # fmt: skip
        self._context = context
        self._settings: Settings = context.settings
        self._jobs = jobs
        self._attempt = attempt
        self._states = states
        self._metrics = metrics
        self._in_flight = 0
        self._waiting = 0
        self._quiet = Throttled()
        self._boundary = Boundary()  # failures are counted by their reason
        self._most_held = max(64, HELD_FOR_EACH_SLOT * self._settings.backfiller_concurrency)
        self.finished = 0

    async def run(self) -> None:
        """Work until told to stop, then let repos in flight end; the others stay pending."""
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as intake:
                intake.start_soon(self._take_in, nursery)
                intake.start_soon(self._wake)
                await self._context.stopping.wait()
                intake.cancel_scope.cancel()
            with trio.move_on_after(DRAIN_SECONDS):
                # Two conditions end it, one of them a count: looking is simpler than two events.
                while self._in_flight and not self._context.hurrying.is_set():  # noqa: ASYNC110
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        await self._release()

    async def report_health(self) -> None:
        """Publish figures until cancelled."""
        while True:
            self._attempt.report()
            before = self.finished
            await trio.sleep(HEALTH_EVERY_SECONDS)
            rate = (self.finished - before) / HEALTH_EVERY_SECONDS
            self._context.health(
                {
                    "rate": round(rate, 2),
                    "running": self._in_flight,
                    "waiting": self._waiting,
                    "finished": self.finished,
                }
            )

    async def _release(self) -> None:
        """What did not end stays pending and is read again by the next life of this consumer."""
        self._context.health({"pending": self._jobs.held})
        with trio.move_on_after(RELEASE_SECONDS):
            try:
                await self._jobs.release()
            except (StoreUnavailable, StoreRejected) as error:
                log.warning("held entries keep their deliveries", extra={"error": str(error)})

    async def _take_in(self, nursery: trio.Nursery) -> None:
        await self._recover(nursery)
        self._context.ready()
        with self._context.activity("intake") as intake:
            await self._read(intake, nursery)

    async def _read(self, intake: Activity, nursery: trio.Nursery) -> None:
        """Take up new entries and those of workers that are gone, until cancelled."""
        next_claim = trio.current_time() + CLAIM_EVERY_SECONDS
        may_have_lost = False
        while True:
            intake.progress()
            room = self._most_held - self._jobs.held
            if room < self._most_held // 8:  # few large pages instead of many small ones
                await trio.sleep(0.05)
                continue
            try:
                if may_have_lost:
                    await self._jobs.find_lost()
                    may_have_lost = False
                if trio.current_time() >= next_claim:
                    await self._jobs.claim()
                    next_claim = trio.current_time() + CLAIM_EVERY_SECONDS
                await self._jobs.read(room)
            except (StoreUnavailable, StoreRejected) as error:
                may_have_lost = True
                await self._wait_for_store(error)
            for job in self._jobs.taken():
                nursery.start_soon(self._work, job, trio.Event())

    async def _wake(self) -> None:
        """Bring back what has waited long enough, until cancelled."""
        while True:
            try:
                self._metrics.woken.inc(await self._jobs.wake())
                self._waiting = await self._jobs.count_waiting()
                self._metrics.waiting.set(self._waiting)
            except (StoreUnavailable, StoreRejected) as error:
                await self._wait_for_store(error)
            await trio.sleep(WAKE_EVERY_SECONDS)

    async def _recover(self, nursery: trio.Nursery) -> None:
        """Take up what is pending; what may have crashed the worker is tried with nothing behind.

        Jobs that were taken up before a failure of the store are held and not yielded again.
        """
        with self._context.activity("recovery") as recovery:
            while True:
                try:
                    async with aclosing(self._jobs.recover()) as pending:
                        async for job in pending:
                            recovery.progress()
                            tried = trio.Event()
                            nursery.start_soon(self._work, job, tried)
                            if job.suspicious:
                                with trio.move_on_after(SUSPECT_SECONDS):
                                    await tried.wait()
                    return
                except (StoreUnavailable, StoreRejected) as error:
                    recovery.progress()
                    await self._wait_for_store(error)

    async def _wait_for_store(self, error: Exception) -> None:
        self._metrics.store_errors.inc()
        if self._quiet.allow("read") is not None:
            log.warning("repos to fetch cannot be read", extra={"error": str(error)})
        await trio.sleep(1.0)

    async def _work(self, job: Job, tried: trio.Event) -> None:
        """Try a repo once, and settle its job."""
        if self._context.stopping.is_set():
            return
        began = trio.current_time()
        self._in_flight += 1
        self._metrics.running.set(self._in_flight)
        try:
            try:
                done = await self._attempt.run(job.repo)
            except RepoFailed as failure:
                await self._failed(job, failure, trio.current_time() - began)
            except HostBusy as busy:
                await self._put_off(job, busy)
            except NotStored as early:
                comes_back = replace(job.repo, settles=job.repo.settles + 1)
                await self._jobs.postpone(job, early.seconds, comes_back)
            except Exception as error:  # noqa: BLE001 - see runtime.boundary
                self._boundary.caught(error, "repo", did=job.repo.did)
                message = f"{type(error).__name__}: {error}"
                unknown = RepoFailed("transient", "internal_error", message)
                await self._failed(job, unknown, trio.current_time() - began)
            else:
                await self._done(job, done, trio.current_time() - began)
        except Exception as error:  # noqa: BLE001 - its outcome could not be noted
            self._boundary.caught(error, "outcome", did=job.repo.did)
            self._jobs.let_go(job)
        finally:
            self._in_flight -= 1
            self._metrics.running.set(self._in_flight)
            tried.set()

    async def _put_off(self, job: Job, busy: HostBusy) -> None:
        """Let a job wait until its host has time; only one that keeps failing counts."""
        if busy.problem:
            failure = RepoFailed("transient", "host_parked", str(busy), busy.seconds, busy.host)
            await self._failed(job, failure, 0.0)
            return
        self._metrics.postponed.inc()
        await self._jobs.postpone(job, busy.seconds, job.repo)

    async def _done(self, job: Job, done: Done, seconds: float) -> None:
        if done.unchanged and job.repo.settles:
            await self._jobs.finish(job)  # its outcome is noted already
            return
        outcome = "unchanged" if done.unchanged else "done"
        state = State(
            job.repo.did, "done", reason="unchanged" if done.unchanged else None, rev=done.rev,
            host=done.host or None, attempts=job.repo.attempts + (not done.unchanged),
            records=None if done.unchanged else done.records,
            deletes=None if done.unchanged else done.deletes,
            bytes=None if done.unchanged else done.bytes, seconds=seconds,
        )  # fmt: skip
        # Stored first: an entry that is gone must not leave a repo without an outcome.
        await self._states.store(state)
        if done.settles:
            await self._jobs.postpone(job, settle_pause(1), _look_again(job.repo, done.rev))
        else:
            await self._jobs.finish(job)
        self._ended(outcome)

    async def _failed(self, job: Job, failure: RepoFailed, seconds: float) -> None:
        verdict = judge(job.repo, failure, self._settings)
        self._count(failure)
        # A pause that a host asks for may come again and again: it is no news for the ledger.
        if failure.kind != "rate_limited":
            await self._states.store(_state(job, failure, verdict, seconds))
        match verdict.action:
            case "wait":
                comes_back = replace(job.repo, attempts=verdict.attempts)
                await self._jobs.postpone(job, verdict.seconds, comes_back)
                self._metrics.retries.inc()
            case "unavailable":
                self._metrics.skipped.inc()
                await self._jobs.finish(job)
                self._ended("unavailable")
                self._say("repo skipped", job, failure)
            case "bury":
                text = f"{job.repo.did}: {failure}"
                await self._jobs.bury(job, failure.reason, text, verdict.attempts)
                self._metrics.outcomes.labels("failed").inc()

    def _ended(self, outcome: str) -> None:
        self.finished += 1
        self._metrics.processed.inc()
        self._metrics.outcomes.labels(outcome).inc()

    def _say(self, what: str, job: Job, failure: RepoFailed) -> None:
        held = self._quiet.allow(failure.reason)
        if held is not None:
            extra = {"did": job.repo.did, "reason": failure.reason, "more": held}
            log.info(what, extra=extra)

    def _count(self, failure: RepoFailed) -> None:
        metrics = self._metrics
        metrics.count_failure(failure.reason, failure.kind)
        if failure.reason in _VERIFICATION:
            metrics.verification_errors.inc()
        elif failure.kind == "invalid":
            metrics.parse_errors.inc()
        else:
            metrics.fetch_errors.inc()


def _look_again(repo: RepoJob, rev: str) -> RepoJob:
    """Return the job that looks at a repo once more when it is stored at a rev."""
    return replace(repo, rev=rev, deleted=(), reason=FetchReason.SETTLE, attempts=0, settles=1)


def _state(job: Job, failure: RepoFailed, verdict: Verdict, seconds: float) -> State:
    wait = timedelta(seconds=verdict.seconds)
    base = State(
        job.repo.did, "failed", failure.kind, failure.reason, str(failure),
        host=failure.host or None, attempts=verdict.attempts, seconds=seconds,
    )  # fmt: skip
    match verdict.action:
        case "wait":
            return replace(base, status="waiting", next_attempt_at=datetime.now(UTC) + wait)
        case "unavailable":
            return replace(base, status="unavailable")
    return base
