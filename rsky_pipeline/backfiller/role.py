"""The backfiller worker: repos in flight, those that wait for another attempt, and the drain."""

import logging
import random
from collections.abc import Callable
from contextlib import ExitStack, aclosing
from functools import partial

import trio

from rsky_pipeline.backfiller.budget import Budget
from rsky_pipeline.backfiller.fetch import Fetcher, HostSlots
from rsky_pipeline.backfiller.jobs import Job, Jobs
from rsky_pipeline.backfiller.outcome import RepoFailed
from rsky_pipeline.backfiller.output import Output
from rsky_pipeline.backfiller.work import Attempt
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.network.directory import Directory
from rsky_pipeline.network.http import HttpClient
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.runtime.backoff import bound
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.logging import Throttled
from rsky_pipeline.runtime.threads import StoreThread
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.lag import StreamReport
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, REPO_STREAMS
from rsky_pipeline.streams.self_check import SelfCheck
from rsky_pipeline.streams.watch import watch

log = logging.getLogger(__name__)
MAX_WAITING = 10_000  # repos that wait for another attempt; more stop the intake
CLAIM_EVERY_SECONDS = 15.0
WATCH_EVERY_SECONDS = 5.0
DRAIN_SECONDS = 10.0
RELEASE_SECONDS = 2.0  # for a store that does not answer while the worker is stopping
MAX_CACHED_ACCOUNTS = 20_000  # documents; one is needed once or twice, soon after it is fetched


async def run(context: WorkerContext) -> None:
    """Run a backfiller until it is told to stop."""
    settings = context.settings
    metrics = BackfillerMetrics(context.registry)
    self_check = SelfCheck(
        context.registry, "backfiller", settings, (*REPO_STREAMS, FIREHOSE_BACKFILL)
    )
    with ExitStack() as stack:
        stores = []
        for purpose in ("read", "settle", "append", "watch"):
            name = f"{context.consumer}-{purpose}"
            store = connect(settings.redis_url or "", name=name)
            stack.callback(store.close)
            stores.append(store)
        jobs = Jobs(stores[0], stores[1], settings, context.consumer, metrics)
        async with HttpClient(
            allow_private=settings.allow_private_hosts,
            silence_seconds=settings.backfiller_http_timeout_seconds,
        ) as http:
            directory = Directory(
                http,
                settings.plc_url,
                allow_private=settings.allow_private_hosts,
                max_cached=MAX_CACHED_ACCOUNTS,
            )
            budget = Budget(settings.backfiller_memory_mb * 1024 * 1024)
            metrics.memory.set_function(lambda: budget.used)
            fetcher = Fetcher(http, directory, settings, budget, metrics, HostSlots())
            output = Output(stores[2], settings.backfill_high_water_mark, metrics)
            worker = Worker(context, jobs, Attempt(fetcher, output), metrics)
            groups = dict.fromkeys(REPO_STREAMS, (settings.backfiller_group,))
            groups[FIREHOSE_BACKFILL] = (settings.indexer_group,)
            gauges = StreamMetrics(context.registry, "backfiller", groups)
            async with trio.open_nursery() as nursery:
                look = partial(watch, stores[3], gauges, tuple(groups), self_check)
                nursery.start_soon(_watch, look, gauges)
                nursery.start_soon(worker.report_health)
                await worker.run()
                nursery.cancel_scope.cancel()


class Worker:
    """The loop of one backfiller."""

    def __init__(
        self, context: WorkerContext, jobs: Jobs, attempt: Attempt, metrics: BackfillerMetrics
    ) -> None:
        self._context = context
        self._settings: Settings = context.settings
        self._jobs = jobs
        self._attempt = attempt
        self._metrics = metrics
        self._slots = trio.CapacityLimiter(self._settings.backfiller_concurrency)
        self._in_flight = 0
        self._waiting = 0
        self._quiet = Throttled()
        self.finished = 0

    async def run(self) -> None:
        """Work until told to stop, then let repos in flight end; the others stay pending."""
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as intake:
                intake.start_soon(self._take_in, nursery)
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
            before = self.finished
            await trio.sleep(WATCH_EVERY_SECONDS)
            rate = (self.finished - before) / WATCH_EVERY_SECONDS
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
        next_claim = trio.current_time() + CLAIM_EVERY_SECONDS
        while True:
            self._context.progress("intake")
            room = 2 * self._settings.backfiller_concurrency - (self._jobs.held - self._waiting)
            if room <= 0 or self._waiting >= MAX_WAITING:
                await trio.sleep(0.05)
                continue
            try:
                if trio.current_time() >= next_claim:
                    for job in await self._jobs.claim():
                        nursery.start_soon(self._work, job, trio.Event())
                    next_claim = trio.current_time() + CLAIM_EVERY_SECONDS
                for job in await self._jobs.read(room):
                    nursery.start_soon(self._work, job, trio.Event())
            except (StoreUnavailable, StoreRejected) as error:
                await self._wait_for_store(error)

    async def _recover(self, nursery: trio.Nursery) -> None:
        """Take up what is pending; what may have crashed the worker is tried with nothing behind.

        Jobs that were taken up before a failure of the store are held and not yielded again.
        """
        while True:
            try:
                async with aclosing(self._jobs.recover()) as pending:
                    async for job in pending:
                        tried = trio.Event()
                        nursery.start_soon(self._work, job, tried)
                        if job.suspicious:
                            await tried.wait()
                return
            except (StoreUnavailable, StoreRejected) as error:
                await self._wait_for_store(error)

    async def _wait_for_store(self, error: Exception) -> None:
        self._metrics.store_errors.inc()
        if self._quiet.allow("read") is not None:
            log.warning("repos to fetch cannot be read", extra={"error": str(error)})
        await trio.sleep(1.0)

    async def _work(self, job: Job, tried: trio.Event) -> None:
        """Try a repo until it is settled; a wait between two attempts occupies no slot."""
        attempts = 0
        while True:
            async with self._slots:
                if self._context.stopping.is_set():
                    return
                failure = await self._try(job)
            tried.set()
            if failure is None:
                self.finished += 1
                self._metrics.processed.inc()
                return
            self._metrics.count_failure(failure.reason)
            # Deletions that nothing else knows of must not go with a repo that cannot be fetched.
            if failure.kind == "permanent" and not job.repo.deleted:
                await self._skip(job, failure)
                return
            attempts += failure.kind != "rate_limited"
            if failure.kind == "permanent" or attempts >= self._settings.backfiller_max_attempts:
                error = f"{job.repo.did}: {failure}"
                await self._jobs.bury(job, failure.reason, error, max(attempts, 1))
                return
            await self._pause(max(attempts, 1), failure.retry_after)
            self._metrics.retries.inc()

    async def _skip(self, job: Job, failure: RepoFailed) -> None:
        self._metrics.skipped.inc()
        self._metrics.processed.inc()
        self.finished += 1
        held = self._quiet.allow(failure.reason)
        if held is not None:
            extra = {"did": job.repo.did, "reason": failure.reason, "more": held}
            log.info("repo skipped", extra=extra)
        await self._jobs.finish(job)

    async def _try(self, job: Job) -> RepoFailed | None:
        self._in_flight += 1
        self._metrics.running.set(self._in_flight)
        try:
            await self._attempt.run(job.repo)
            await self._jobs.finish(job)
        except RepoFailed as failure:
            self._count_kind(failure)
            return failure
        finally:
            self._in_flight -= 1
            self._metrics.running.set(self._in_flight)
        return None

    def _count_kind(self, failure: RepoFailed) -> None:
        if failure.reason in {"wrong_did", "bad_signature", "no_key"}:
            self._metrics.verification_errors.inc()
        elif failure.kind == "invalid":
            self._metrics.parse_errors.inc()
        else:
            self._metrics.fetch_errors.inc()

    async def _pause(self, attempt: int, retry_after: float | None) -> None:
        base = self._settings.backfiller_retry_initial_ms / 1000
        cap = self._settings.backfiller_retry_max_ms / 1000
        seconds = bound(attempt, base, cap) * random.uniform(0.5, 1.0)
        self._waiting += 1
        self._metrics.waiting.set(self._waiting)
        try:
            await trio.sleep(max(seconds, retry_after or 0.0))
        finally:
            self._waiting -= 1
            self._metrics.waiting.set(self._waiting)


async def _watch(look: Callable[[], list[StreamReport]], gauges: StreamMetrics) -> None:
    """Keep the stream gauges true until cancelled; lag and lengths in `status` come from them."""
    thread = StoreThread()
    while True:
        try:
            await thread.call(look)
        except (StoreUnavailable, StoreRejected):
            gauges.errors.inc()
        await trio.sleep(WATCH_EVERY_SECONDS)
