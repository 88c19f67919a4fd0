"""The backfiller worker, put together from its parts."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

import trio

from rsky_pipeline.backfiller.build import build_fetcher
from rsky_pipeline.backfiller.jobs import Jobs
from rsky_pipeline.backfiller.ledger import Ledger
from rsky_pipeline.backfiller.output import Output
from rsky_pipeline.backfiller.states import Knowledge, Patient, States
from rsky_pipeline.backfiller.work import Attempt
from rsky_pipeline.backfiller.worker import Worker
from rsky_pipeline.database.connection import Database
from rsky_pipeline.health.self_check import SelfCheck, watch
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.threads import StoreThread
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.lag import StreamReport
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, REPO_STREAMS

WATCH_EVERY_SECONDS = 5.0


async def run(context: WorkerContext) -> None:
    """Run a backfiller until it is told to stop."""
    settings = context.settings
    metrics = BackfillerMetrics(context.registry)
    self_check = SelfCheck(
        context.registry, "backfiller", settings, (*REPO_STREAMS, FIREHOSE_BACKFILL)
    )
    async with AsyncExitStack() as stack:
        reading, settling, appending, watching = (
            _store(context, stack, purpose) for purpose in ("read", "settle", "append", "watch")
        )
        fetcher = await stack.enter_async_context(build_fetcher(settings, metrics))
        jobs = Jobs(reading, settling, settings, context.consumer, metrics)
        output = Output(appending, settings.backfill_high_water_mark, metrics)
        known, outcomes = (_ledger(context, stack, metrics) for _ in range(2))
        states = States(outcomes)
        worker = Worker(context, jobs, Attempt(fetcher, output, Knowledge(known)), states, metrics)
        groups = dict.fromkeys(REPO_STREAMS, (settings.backfiller_group,))
        groups[FIREHOSE_BACKFILL] = (settings.indexer_group,)
        gauges = StreamMetrics(context.registry, "backfiller", groups)
        async with trio.open_nursery() as nursery:
            look = partial(watch, watching, gauges, tuple(groups), self_check)
            nursery.start_soon(_watch, look, gauges)
            nursery.start_soon(states.run)
            nursery.start_soon(worker.report_health)
            await worker.run()
            nursery.cancel_scope.cancel()


def _store(context: WorkerContext, stack: AsyncExitStack, purpose: str) -> Store:
    name = f"{context.consumer}-{purpose}"
    store = connect(context.settings.redis_url or "", name=name)
    stack.callback(store.close)
    return store


def _ledger(context: WorkerContext, stack: AsyncExitStack, metrics: BackfillerMetrics) -> Patient:
    settings = context.settings

    def open_database() -> Database:
        return Database.connect(
            settings.database_url or "", schema=settings.database_schema, name=context.consumer,
            by_key=True,
        )  # fmt: skip

    ledger = Ledger(open_database)
    stack.callback(ledger.close)
    return Patient(ledger, metrics)


async def _watch(look: Callable[[], list[StreamReport]], gauges: StreamMetrics) -> None:
    """Keep the stream gauges true until cancelled; lag and lengths in `status` come from them."""
    thread = StoreThread()
    while True:
        try:
            await thread.call(look)
        except (StoreUnavailable, StoreRejected):
            gauges.errors.inc()
        await trio.sleep(WATCH_EVERY_SECONDS)
