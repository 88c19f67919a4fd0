"""Builds and runs the backfiller worker."""

from contextlib import AsyncExitStack
from functools import partial

import trio

from rsky_pipeline.backfiller.attempt import Attempts
from rsky_pipeline.backfiller.jobs import JobQueue
from rsky_pipeline.backfiller.store import Output, outcome_writer
from rsky_pipeline.backfiller.worker import Worker
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.selection import SelectionReader
from rsky_pipeline.health.pairing import open_paired
from rsky_pipeline.health.self_check import SelfCheck, watch, watch_stores
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.repos.fetch import open_fetcher
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.identities import SharedIdentities
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, REPO_STREAMS

WATCH_SECONDS = 5.0


async def run(context: WorkerContext) -> None:
    """Run a backfiller until `context` requests a stop."""
    settings = context.settings
    metrics = BackfillerMetrics(context.registry)
    self_check = SelfCheck(
        context.registry, "backfiller", settings, (*REPO_STREAMS, FIREHOSE_BACKFILL)
    )
    async with AsyncExitStack() as stack:
        redis = partial(_redis, context, stack, metrics)
        database = partial(_database, context, stack, metrics)
        reader = SelectionReader()
        shared = SharedIdentities(
            settings.redis_url or "", context.consumer, lambda _: metrics.store_errors.inc()
        )
        stack.callback(shared.close)
        fetcher = await stack.enter_async_context(
            open_fetcher(settings, metrics, lambda: reader.selection, shared)
        )
        jobs = JobQueue(
            redis("read"), redis("settle"), settings, context.consumer, metrics,
            blameless=context.blameless,
        )  # fmt: skip
        output = Output(redis("append"), settings.backfill_high_water_mark, metrics)
        outcomes = outcome_writer(database("outcomes"))
        lookups = database("look-ups")
        attempts = Attempts(settings, jobs, lookups, fetcher, output, outcomes, metrics, reader)
        worker = Worker(context, jobs, attempts, metrics)
        groups = dict.fromkeys(REPO_STREAMS, (settings.backfiller_group,))
        groups[FIREHOSE_BACKFILL] = (settings.indexer_group,)
        gauges = StreamMetrics(context.registry, "backfiller", groups)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, redis("watch"), gauges, tuple(groups), self_check, jobs)
            nursery.start_soon(
                watch_stores,
                self_check,
                context,
                lambda: [*jobs.verdicts, *fetcher.identities.verdicts],
            )
            nursery.start_soon(worker.report_health)
            nursery.start_soon(_follow_selection, lookups, reader)
            nursery.start_soon(fetcher.follow_directory)
            nursery.start_soon(shared.run)
            await worker.run()
            nursery.cancel_scope.cancel()


def _redis(
    context: WorkerContext, stack: AsyncExitStack, metrics: BackfillerMetrics, purpose: str
) -> Link[Store]:
    name = f"{context.consumer}-{purpose}"
    link = Link(
        partial(connect, context.settings.redis_url or "", name=name),
        purpose=purpose,
        failed=lambda _: metrics.store_errors.inc(),
        boundary=Boundary(metrics.store_errors.inc),
    )
    stack.callback(link.close)
    return link


def _database(
    context: WorkerContext, stack: AsyncExitStack, metrics: BackfillerMetrics, purpose: str
) -> Link[Database]:
    settings = context.settings
    open_store = partial(connect, settings.redis_url or "", name=f"{context.consumer}-pairing")
    open_any = partial(
        Database.connect, settings.database_url or "", schema=settings.database_schema,
        name=context.consumer, by_key=True,
    )  # fmt: skip
    open_database = partial(open_paired, open_store, open_any, settings.indexer_group)
    link = Link(open_database, purpose=purpose, failed=lambda _: metrics.database_errors.inc())
    stack.callback(link.close)
    return link


async def _follow_selection(lookups: Link[Database], reader: SelectionReader) -> None:
    """Take changes of the blocks up, for repos that take long, until cancelled."""
    while True:
        await lookups.attempt(reader.refresh)
        await trio.sleep(WATCH_SECONDS)


async def _watch(
    link: Link[Store], gauges: StreamMetrics, streams: tuple[str, ...], self_check: SelfCheck,
    jobs: JobQueue,
) -> None:  # fmt: skip
    """Update the stream gauges until cancelled; `status` shows lag and lengths from them."""
    look = partial(watch, metrics=gauges, streams=streams, self_check=self_check)
    while True:
        reports = await link.attempt(look)
        if reports is None:
            gauges.errors.inc()
        else:
            jobs.observe(reports)
        await trio.sleep(WATCH_SECONDS)
