"""The backfiller worker: repos in flight, those that wait for another attempt, and the drain."""

import logging
import random
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import trio

from rsky_pipeline.backfiller.budget import Budget
from rsky_pipeline.backfiller.fetch import Fetcher
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
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.lag import StreamReport
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, REPO_BACKFILL
from rsky_pipeline.streams.watch import watch

log = logging.getLogger(__name__)
MAX_WAITING = 10_000  # repos that wait for another attempt; more stop the intake
CLAIM_EVERY_SECONDS = 15.0
WATCH_EVERY_SECONDS = 5.0
DRAIN_SECONDS = 10.0


async def run(context: WorkerContext) -> None:
    """Run a backfiller until it is told to stop."""
    settings = context.settings
    metrics = BackfillerMetrics(context.registry)
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
                http, settings.plc_url, allow_private=settings.allow_private_hosts
            )
            budget = Budget(settings.backfiller_memory_mb * 1024 * 1024)
            fetcher = Fetcher(http, directory, settings, budget, metrics, {})
            output = Output(stores[2], settings.backfill_high_water_mark, metrics)
            worker = Worker(context, jobs, Attempt(fetcher, output), metrics)
            groups = {
                REPO_BACKFILL: (settings.backfiller_group,),
                FIREHOSE_BACKFILL: (settings.indexer_group,),
            }
            gauges = StreamMetrics(context.registry, "backfiller", groups)
            async with trio.open_nursery() as nursery:
                look = partial(watch, stores[3], gauges, tuple(groups))
                nursery.start_soon(_watch, look, metrics, worker)
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
        self.finished = 0

    async def run(self) -> None:
        """Work until told to stop, then let repos in flight end; the others stay pending."""
        async with trio.open_nursery() as nursery:
            for job in await self._recovered():
                self._start(nursery, job)
            self._context.ready()
            await self._take_in(nursery)
            with trio.move_on_after(DRAIN_SECONDS):
                # Two conditions end it, one of them a count: looking is simpler than two events.
                while self._in_flight and not self._context.hurrying.is_set():  # noqa: ASYNC110
                    await trio.sleep(0.05)
            # What did not end stays pending and is read again by the next life of this consumer.
            self._context.health({"pending": self._jobs.held})
            nursery.cancel_scope.cancel()

    async def _recovered(self) -> list[Job]:
        while True:
            try:
                return await self._jobs.recover()
            except (StoreUnavailable, StoreRejected) as error:
                self._metrics.store_errors.inc()
                log.warning("waiting for Redis", extra={"error": str(error)})
                await trio.sleep(1.0)

    async def _take_in(self, nursery: trio.Nursery) -> None:
        stopping = self._context.stopping
        next_claim = trio.current_time() + CLAIM_EVERY_SECONDS
        while not stopping.is_set():
            self._context.progress("intake")
            room = 2 * self._settings.backfiller_concurrency - (self._jobs.held - self._waiting)
            if room <= 0 or self._waiting >= MAX_WAITING:
                await trio.sleep(0.05)
                continue
            try:
                taken = []
                if trio.current_time() >= next_claim:
                    taken = await self._jobs.claim()
                    next_claim = trio.current_time() + CLAIM_EVERY_SECONDS
                taken += await self._jobs.read(room)
            except (StoreUnavailable, StoreRejected) as error:
                self._metrics.store_errors.inc()
                log.warning("repo_backfill cannot be read", extra={"error": str(error)})
                await trio.sleep(1.0)
                continue
            for job in taken:
                self._start(nursery, job)

    def _start(self, nursery: trio.Nursery, job: Job) -> None:
        nursery.start_soon(self._work, job)

    async def _work(self, job: Job) -> None:
        """Try a repo until it is settled; a wait between two attempts occupies no slot."""
        attempts = 0
        while True:
            async with self._slots:
                if self._context.stopping.is_set():
                    return
                failure = await self._try(job)
            if failure is None:
                self.finished += 1
                self._metrics.processed.inc()
                return
            self._metrics.count_failure(failure.reason)
            if failure.kind == "permanent":
                self._metrics.skipped.inc()
                self._metrics.processed.inc()
                self.finished += 1
                log.info("repo skipped", extra={"did": job.repo.did, "reason": failure.reason})
                await self._jobs.finish(job)
                return
            attempts += failure.kind != "rate_limited"
            if attempts >= self._settings.backfiller_max_attempts:
                held = Job(job.delivery, job.repo, attempts)
                await self._jobs.bury(held, failure.reason, f"{job.repo.did}: {failure}")
                return
            await self._pause(max(attempts, 1), failure.retry_after)
            self._metrics.retries.inc()

    async def _try(self, job: Job) -> RepoFailed | None:
        self._in_flight += 1
        self._metrics.running.set(self._in_flight)
        try:
            await self._attempt.run(job.repo.did)
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

    def publish(self, rate: float, lag: int) -> None:
        """Put the figures into the health document."""
        self._context.health(
            {
                "rate": round(rate, 2),
                "lag": lag,
                "running": self._in_flight,
                "waiting": self._waiting,
                "finished": self.finished,
            }
        )


async def _watch(
    look: Callable[[], list[StreamReport]], metrics: BackfillerMetrics, worker: Worker
) -> None:
    limiter = trio.CapacityLimiter(1)
    before = worker.finished
    while True:
        lag = 0
        try:
            reports = await trio.to_thread.run_sync(look, limiter=limiter)
            for report in reports:
                if report.name == REPO_BACKFILL:
                    lag = sum(group.lag + group.pending for group in report.groups)
        except (StoreUnavailable, StoreRejected):
            metrics.store_errors.inc()
        rate = (worker.finished - before) / WATCH_EVERY_SECONDS
        before = worker.finished
        worker.publish(rate, lag)
        await trio.sleep(WATCH_EVERY_SECONDS)
