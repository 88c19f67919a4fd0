"""The indexer role: reads three streams, applies batches one after the other, acknowledges them.

A reader thread a stream prepares the next batch while the current one is applied and the one
before it is acknowledged. Live events and labels go before history, which has a small guaranteed
share while they lag (`shares`). Nothing is held that is not pending in Redis too, so a worker may
die at any moment; it, or after a while another one, reads the same entries again.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import trio

from rsky_pipeline.configuration.selection import is_selected
from rsky_pipeline.configuration.settings import Validation
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import (
    DatabaseError,
    DatabaseUnavailable,
    SchemaMismatch,
    TransactionConflict,
)
from rsky_pipeline.health.self_check import SelfCheck
from rsky_pipeline.indexer.accounts.lookups import look_up_accounts
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.core.apply import Applier
from rsky_pipeline.indexer.core.batch import BatchOutcome, EntryBatch
from rsky_pipeline.indexer.core.entries import CoarseClock, read_entry
from rsky_pipeline.indexer.core.labels import read_labels
from rsky_pipeline.indexer.housekeeping import Housekeeping
from rsky_pipeline.indexer.maintenance import Maintenance
from rsky_pipeline.indexer.report import IndexerReport
from rsky_pipeline.indexer.scheduling import BatchQueue, FairScheduler
from rsky_pipeline.indexer.settler import Settler
from rsky_pipeline.indexer.stream_reader import Content, ReadRule, StreamReader
from rsky_pipeline.observability.indexer import IndexerMetrics
from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.errors import SettingError
from rsky_pipeline.runtime.threads import StoreThread
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.consumer import Delivery
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, FIREHOSE_LIVE, LABEL_LIVE

FIRST = (FIREHOSE_LIVE, LABEL_LIVE)
STREAMS = (*FIRST, FIREHOSE_BACKFILL)
HEALTH_SECONDS = 1.0
APPLYING, SETTLING = "applying", "acknowledging"

CATCHING_UP_SECONDS = 30.0  # live events older than this come of a backlog


async def run(context: WorkerContext) -> None:
    """Run until told to stop, then apply what has been read."""
    indexer = Indexer(context)
    with closing(indexer):
        async with trio.open_nursery() as services:
            services.start_soon(indexer.report_health)
            if not await indexer.connect():
                services.cancel_scope.cancel()
                return
            services.start_soon(indexer.maintenance.run)
            services.start_soon(indexer.housekeeping.run)
            services.start_soon(
                look_up_accounts, context.settings, context.consumer, indexer.metrics,
                indexer.collections,
                indexer.open_database, indexer.is_behind,
            )  # fmt: skip
            await indexer.work()
            services.cancel_scope.cancel()


class Indexer:
    """The tasks of one indexer."""

    def __init__(self, context: WorkerContext) -> None:
        settings = context.settings
        self._context = context
        self.collections = wanted_collections(settings.collections, settings.validation)
        self._now = CoarseClock()
        self.metrics = IndexerMetrics(context.registry, STREAMS, list(self.collections))
        self._report = IndexerReport(context, self.metrics)
        self._applier = Applier(self.collections, settings.max_deliveries)
        self._database: Database | None = None
        self._settler = Settler(
            settings.indexer_group, context.consumer, partial(self._open_store, "settle")
        )
        self._threads = {APPLYING: StoreThread(), SETTLING: StoreThread()}
        self._scheduler = FairScheduler(
            settings.indexer_backfill_share_percent / 100, time.monotonic
        )
        self._queue = BatchQueue(FIRST, FIREHOSE_BACKFILL, self._scheduler)
        self.metrics.history_share.set_function(lambda: self._scheduler.share)
        self._intakes = {stream: self._intake(stream) for stream in STREAMS}
        groups = dict.fromkeys(STREAMS, (settings.indexer_group,))
        self.maintenance = Maintenance(
            partial(self._open_store, "watch"), self._intakes,
            StreamMetrics(context.registry, "indexer", groups), self.metrics,
            SelfCheck(context.registry, "indexer", settings, STREAMS),
        )  # fmt: skip
        self.housekeeping = Housekeeping(self.open_database, self.metrics)
        self._is_ready = False

    async def connect(self) -> bool:
        """Connect to both stores before anything is read; return False when told to stop."""
        backoff = Backoff(base=0.2, cap=10.0)
        while not self._context.stopping.is_set():
            try:
                await self._threads[APPLYING].call(self._connected)
                await self._threads[SETTLING].call(self._settler.connect)
                return True
            except (DatabaseUnavailable, StoreUnavailable, StoreRejected) as error:
                backoff, wait = self._failed(backoff, "connection", error)
            except DatabaseError as error:
                raise _problem(error) from error
            with trio.move_on_after(wait):
                await self._context.stopping.wait()
        return False

    async def work(self) -> None:
        """Read and apply until told to stop and everything that was read is applied."""
        applied, taken = trio.open_memory_channel[tuple[EntryBatch, BatchOutcome]](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._apply_all, applied)
            nursery.start_soon(self._settle_all, taken)
            async with trio.open_nursery() as readers:
                for intake in self._intakes.values():
                    readers.start_soon(self._read, intake)
            await self._queue.close()
        self._report_held()

    async def report_health(self) -> None:
        """Publish figures until cancelled."""
        while True:
            self._report_held()
            self._report.health()
            await trio.sleep(HEALTH_SECONDS)

    def _report_held(self) -> None:
        self.metrics.live_behind.set(self._queue.behind)
        held = sum(len(intake.held) for intake in self._intakes.values())
        self.metrics.pending.set(held)
        self._context.health({"pending": held})

    def is_behind(self) -> bool:
        """Tell whether live events wait: here, or still at the relay, being old ones."""
        return self._queue.behind or self._report.live_lag > CATCHING_UP_SECONDS

    def close(self) -> None:
        """Close all connections."""
        self._disconnect()
        self._settler.disconnect()
        self.maintenance.close()
        self.housekeeping.close()
        for intake in self._intakes.values():
            intake.disconnect()

    async def _read(self, intake: StreamReader) -> None:
        thread = StoreThread()
        backoff = Backoff(base=0.1, cap=10.0)
        claimed = bodiless = 0
        while not self._context.stopping.is_set():
            try:
                with self._context.activity(f"reading {intake.rule.stream}"):
                    batch = await thread.call(intake.take)
                backoff = backoff.worked(trio.current_time())
            except (StoreUnavailable, StoreRejected) as error:
                await thread.call(intake.disconnect)
                backoff, wait = self._failed(backoff, "reading", error)
                with trio.move_on_after(wait):
                    await self._context.stopping.wait()
                continue
            self.metrics.claimed.inc(intake.claimed - claimed)
            self.metrics.bodiless.inc(intake.bodiless - bodiless)
            claimed, bodiless = intake.claimed, intake.bodiless
            if batch.items:
                await self._queue.put(batch)
            else:
                if batch.stream == FIREHOSE_LIVE:
                    self._report.caught_up()
                await self._queue.caught_up(batch.stream)
            self._check_ready()

    async def _apply_all(
        self, applied: trio.MemorySendChannel[tuple[EntryBatch, BatchOutcome]]
    ) -> None:
        async with applied:
            while (batch := await self._queue.take()) is not None:
                if self._context.hurrying.is_set():
                    continue  # the entries stay pending
                self.metrics.active.set(1)
                outcome = await self._until_done(
                    APPLYING, partial(self._apply, batch), self._disconnect
                )
                self.metrics.active.set(0)
                if outcome is None:
                    continue
                history = batch.stream == FIREHOSE_BACKFILL
                self._scheduler.worked(outcome.seconds, history=history, behind=self._queue.behind)
                self.metrics.apply_seconds.labels(batch.stream).inc(outcome.seconds)
                await applied.send((batch, outcome))  # waits until the batch before is settled

    async def _settle_all(
        self, applied: trio.MemoryReceiveChannel[tuple[EntryBatch, BatchOutcome]]
    ) -> None:
        async for batch, outcome in applied:
            settle = partial(self._settler.settle, batch, outcome)
            settled = await self._until_done(SETTLING, settle, self._settler.disconnect)
            if settled is not None:
                self._intakes[batch.stream].let_go(batch)
                self._report.note(batch, settled)
                self._check_ready()

    async def _until_done(
        self, activity: str, attempt: Callable[[], BatchOutcome], disconnect: Callable[[], None]
    ) -> BatchOutcome | None:
        """Try at least once, until it works; None when there is no time left."""
        thread = self._threads[activity]
        backoff = Backoff(base=0.1, cap=10.0)
        with self._context.activity(activity) as attempts:
            try:
                while True:
                    attempts.progress()
                    try:
                        return await thread.call(attempt)
                    except SchemaMismatch as error:
                        raise _problem(error) from error
                    except (DatabaseError, StoreUnavailable, StoreRejected) as error:
                        if not isinstance(error, TransactionConflict):
                            await thread.call(disconnect)
                        self.maintenance.waiting.add(activity)
                        backoff, wait = self._failed(backoff, "acknowledgement", error)
                    with trio.move_on_after(wait):
                        await self._context.hurrying.wait()
                    if self._context.hurrying.is_set():
                        return None
            finally:
                self.maintenance.waiting.discard(activity)

    def _failed(self, backoff: Backoff, what: str, error: Exception) -> tuple[Backoff, float]:
        if isinstance(error, TransactionConflict):
            what = "conflict"
        elif isinstance(error, DatabaseError):
            what = "database"
        self._report.failed(what, error)
        return backoff.failed(trio.current_time())

    def _check_ready(self) -> None:
        """Report ready when everything that was pending at the start has been applied."""
        if not self._is_ready and all(intake.recovered for intake in self._intakes.values()):
            self._is_ready = True
            self._context.ready()

    def _intake(self, stream: str) -> StreamReader:
        settings = self._context.settings
        rule = ReadRule(
            stream, settings.indexer_group, self._context.consumer,
            settings.indexer_batch_size, settings.claim_idle_seconds * 1_000,
        )  # fmt: skip
        read = _read_labels if stream == LABEL_LIVE else self._read_event
        return StreamReader(rule, partial(self._open_store, stream), read)

    def _read_event(self, delivery: Delivery) -> Content:
        return read_entry(delivery.fields, self.collections, self._now())

    def _open_store(self, purpose: str) -> Store:
        settings = self._context.settings
        return connect(settings.redis_url or "", name=f"{self._context.consumer}-{purpose}")

    def _apply(self, batch: EntryBatch) -> BatchOutcome:
        return self._applier.apply(self._connected(), batch)

    def _connected(self) -> Database:
        if self._database is None:
            self._database = self.open_database()
        return self._database

    def _disconnect(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def open_database(self) -> Database:
        """Return a new connection."""
        settings = self._context.settings
        return Database.connect(
            settings.database_url or "",
            schema=settings.database_schema,
            name=self._context.consumer,
            by_key=True,
        )


def wanted_collections(
    selection: Sequence[str], validation: Validation = "lenient"
) -> dict[str, Collection]:
    """Return the collections that the setting selects: by NSID, or by a prefix with its dot."""
    return {
        nsid: collection
        for nsid, collection in registry.load(validation).items()
        if is_selected(nsid, selection)
    }


def _read_labels(delivery: Delivery) -> Content:
    return read_labels(delivery.fields)


def _problem(error: DatabaseError) -> SettingError:
    return SettingError(
        f"PostgreSQL cannot be used: {error}. Check database_url and database_schema, and see what "
        "`rsky-pipeline db check` says"
    )
