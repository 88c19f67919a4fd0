"""The indexer role: reads four streams, applies batches one after the other, acknowledges them.

A batch passes three tasks, each with a thread and a connection of its own: the reader of its stream
(`_read`), the one that applies (`_apply_all`) and the one that acknowledges (`_acknowledge_all`).
So the next batch is read and the one before is acknowledged while one is applied. Live events,
labels and operations of bsync go before history, which has a guaranteed share while they lag
(`scheduling`).

No entry is lost because of the order: its rows are committed first, and only then is it
acknowledged. Nothing is held that is not pending in Redis too, so a worker may die at any moment;
it, or after a while another one, is given the same entries again, and applying them again changes
nothing.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import trio

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    TransactionConflictError,
)
from rsky_pipeline.database.marks import find_loss, heal_marks
from rsky_pipeline.database.selection import load_selection
from rsky_pipeline.health.pairing import open_paired, pair
from rsky_pipeline.health.rules import RuleVerdict
from rsky_pipeline.health.self_check import SelfCheck, watch_stores
from rsky_pipeline.indexer.accounts.lookups import look_up_accounts
from rsky_pipeline.indexer.bsync.operations import BsyncReading, read_bsync
from rsky_pipeline.indexer.collections.registry import SelectedCollections
from rsky_pipeline.indexer.core.apply import Applier
from rsky_pipeline.indexer.core.batch import BatchItem, BatchOutcome, EntryBatch, RefusedEntry
from rsky_pipeline.indexer.core.entries import Reading, Refusal, read_entry
from rsky_pipeline.indexer.core.labels import LabelReading, read_labels
from rsky_pipeline.indexer.report import IndexerReport
from rsky_pipeline.indexer.scheduling import BatchQueue, FairScheduler
from rsky_pipeline.indexer.upkeep import (
    DatabaseWatch,
    SelectionUpkeep,
    StreamUpkeep,
    TableUpkeep,
)
from rsky_pipeline.observability.indexer import IndexerMetrics
from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.errors import SettingError, StoreError, described
from rsky_pipeline.runtime.health import Activity
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.consumer import Consumer, Delivery, Trial
from rsky_pipeline.streams.gap import DATABASE_LOST
from rsky_pipeline.streams.marks import note_mark, noted_marks, report_loss, request_reading
from rsky_pipeline.streams.names import BSYNC_LIVE, FIREHOSE_BACKFILL, FIREHOSE_LIVE, LABEL_LIVE

if TYPE_CHECKING:
    from rsky_pipeline.indexer.seen import SeenService

_log = logging.getLogger(__name__)
FIRST = (FIREHOSE_LIVE, LABEL_LIVE, BSYNC_LIVE)
STREAMS = (*FIRST, FIREHOSE_BACKFILL)
HEALTH_SECONDS = 1.0
APPLYING, ACKNOWLEDGING = "applying", "acknowledging"
MAX_BATCH_BYTES = 4 * 1024 * 1024
BLOCK_MS = 500
LOCK_TIMEOUT_MS = 15_000
# Between two batches that are not full. A statement costs much the same for one row and for thirty,
# so that this decides what an event costs at low rates; a row is visible so much later at most.
PACE_SECONDS = 0.15
CATCHING_UP_SECONDS = 30.0  # live events older than this come of a backlog

OpenConnection = TypeVar("OpenConnection", Store, Database)


async def run(context: WorkerContext) -> None:
    """Run until `stopping` is set, then apply the entries that have been read."""
    indexer = Indexer(context)
    with closing(indexer):
        async with trio.open_nursery() as services:
            services.start_soon(indexer.report_health)
            services.start_soon(watch_stores, indexer.self_check, context, indexer.verdicts)
            if not await indexer.connect():
                services.cancel_scope.cancel()
                return
            services.start_soon(indexer.stream_upkeep.run)
            services.start_soon(indexer.table_upkeep.run)
            services.start_soon(indexer.selection_upkeep.run)
            services.start_soon(indexer.database_watch.run)
            if indexer.seen is not None:
                services.start_soon(indexer.seen.run)
            services.start_soon(
                look_up_accounts, context.settings, context.consumer, indexer.metrics,
                indexer.collections, indexer.open_paired, indexer.is_behind,
                partial(indexer.failed, "identities"),
            )  # fmt: skip
            await indexer.work()
            services.cancel_scope.cancel()


class Indexer:
    """The tasks of one indexer."""

    def __init__(self, context: WorkerContext) -> None:
        settings = context.settings
        self._context = context
        self.collections = SelectedCollections(settings.collections, settings.validation)
        self.metrics = IndexerMetrics(context.registry, STREAMS, list(self.collections))
        self._report = IndexerReport(context, self.metrics)
        self._applier = Applier(self.collections, settings.max_deliveries, context.consumer)
        self._under_way: dict[str, Activity] = {}
        self._was_connected = False
        self._database = self._link(APPLYING, self._open_first_database)
        self._store = self._link(ACKNOWLEDGING, partial(self._open_store, "acknowledge"))
        self._scheduler = FairScheduler(
            settings.indexer_backfill_share_percent / 100, time.monotonic
        )
        self._queue = BatchQueue(FIRST, FIREHOSE_BACKFILL, self._scheduler)
        self.metrics.history_share.set_function(lambda: self._scheduler.share)
        self._trial = Trial(context.blameless)
        self._consumers = {stream: self._consumer(stream) for stream in STREAMS}
        groups = dict.fromkeys(STREAMS, (settings.indexer_group,))
        self.self_check = SelfCheck(context.registry, "indexer", settings, STREAMS)
        self.stream_upkeep = StreamUpkeep(
            partial(self._open_store, "watch"), list(self._consumers.values()),
            StreamMetrics(context.registry, "indexer", groups), self.metrics,
            self.self_check,
            lambda: self._database.in_trouble or self._store.in_trouble,
        )  # fmt: skip
        self.table_upkeep = TableUpkeep(self.open_paired, self.metrics)
        self.selection_upkeep = SelectionUpkeep(
            partial(self._open_store, "selection"), self.open_paired, settings.indexer_group,
            self.metrics,
        )  # fmt: skip
        # It must not wait itself for the locks that it is to report.
        # Its statements are short, so it is the first to notice a server that has stopped.
        self.database_watch = DatabaseWatch(
            partial(self.open_database, lock_timeout_ms=1_000, statement_timeout_ms=5_000),
            bsync=settings.bsync_url is not None,
        )
        self.seen = self._seen_service()
        self._hosts = [endpoint.key for endpoint in settings.relays]
        self._is_ready = False

    def verdicts(self) -> list[RuleVerdict]:
        """Return what the indexer finds beside the rules about samples and stores."""
        remade = (each.verdicts for each in self._consumers.values())
        seen = self.seen.found if self.seen is not None else ()
        return [*self.database_watch.found, *seen, *chain.from_iterable(remade)]

    async def connect(self) -> bool:
        """Connect to both stores; return False when `stopping` is set first."""
        stopping = self._context.stopping
        await self._database.retry(_use, until=stopping)
        self._was_connected = True
        if not stopping.is_set():
            await self._store.retry(Store.ping, until=stopping)
        return not stopping.is_set()

    async def work(self) -> None:
        """Read and apply until `stopping` is set and everything that was read is applied."""
        applied, taken = trio.open_memory_channel[tuple[EntryBatch, BatchOutcome]](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._apply_all, applied)
            nursery.start_soon(self._acknowledge_all, taken)
            async with trio.open_nursery() as readers:
                for consumer in self._consumers.values():
                    readers.start_soon(self._read, consumer)
            await self._queue.close()
        self._report_held()

    async def _read(self, consumer: Consumer) -> None:
        """Read a stream into batches and queue them; entries are decoded in the link's thread."""
        stopping, name = self._context.stopping, f"reading {consumer.stream}"
        link = self._link(name, partial(self._open_store, consumer.stream))
        reclaimed = bodiless = 0
        with closing(link):
            while not stopping.is_set():
                with self._activity(name):
                    batch = await link.retry(partial(self._take, consumer), until=stopping)
                if batch is None:
                    return
                self.metrics.claimed.inc(consumer.reclaimed - reclaimed)
                self.metrics.bodiless.inc(consumer.bodiless - bodiless)
                reclaimed, bodiless = consumer.reclaimed, consumer.bodiless
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
        """Apply batches by priority, each until it works; hand them over to be acknowledged."""
        async with applied:
            while (batch := await self._queue.take()) is not None:
                if self._context.escalated.is_set():
                    continue  # the entries stay pending
                apply = partial(self._apply, batch)
                self.metrics.active.set(1)
                with self._activity(APPLYING):
                    outcome = await self._database.retry(apply, until=self._context.escalated)
                self.metrics.active.set(0)
                if outcome is None:  # no time was left
                    continue
                history = batch.stream == FIREHOSE_BACKFILL
                self._scheduler.worked(outcome.seconds, history=history, behind=self._queue.behind)
                self.metrics.apply_seconds.labels(batch.stream).inc(outcome.seconds)
                await applied.send((batch, outcome))  # waits until the one before is acknowledged

    def _apply(self, batch: EntryBatch, database: Database) -> BatchOutcome:
        self.database_watch.require_unique()
        return self._applier.apply(database, batch)

    async def _acknowledge_all(
        self, applied: trio.MemoryReceiveChannel[tuple[EntryBatch, BatchOutcome]]
    ) -> None:
        """Acknowledge batches whose rows are committed; refused entries become dead letters."""
        async for batch, outcome in applied:
            action = partial(acknowledge, self._consumers[batch.stream], batch, outcome)
            with self._activity(ACKNOWLEDGING):
                done = await self._store.retry(action, until=self._context.escalated)
            if done:
                self._report.note(batch, outcome)
                self._check_ready()

    def _take(self, consumer: Consumer, store: Store) -> EntryBatch:
        """Read the next entries and decode them; in the thread of the reader."""
        report_loss(store, consumer, self._hosts)
        taken = consumer.take(store, self._context.settings.indexer_batch_size)
        items = [BatchItem(delivery, self._decode(delivery)) for delivery in taken.deliveries]
        return EntryBatch(consumer.stream, items, taken.size, taken.more)

    def _decode(self, delivery: Delivery) -> Reading | LabelReading | BsyncReading:
        try:
            if delivery.stream == LABEL_LIVE:
                return read_labels(delivery.fields)
            if delivery.stream == BSYNC_LIVE:
                return read_bsync(delivery.fields)
            return read_entry(delivery.fields, self.collections)
        except Exception as error:  # noqa: BLE001 - an entry must not stop the others
            refusal = Refusal("internal_error", described(error)[:500])
            return Reading("malformed", "", "", refused=refusal)

    def is_behind(self) -> bool:
        """Return whether live events wait: here, or still at the relay, being old ones."""
        return self._queue.behind or self._report.live_lag > CATCHING_UP_SECONDS

    def _check_ready(self) -> None:
        """Report ready when everything that was pending at the start has been applied."""
        if not self._is_ready and all(one.recovered for one in self._consumers.values()):
            self._is_ready = True
            self._context.ready()

    async def report_health(self) -> None:
        """Publish figures until cancelled."""
        while True:
            self._report_held()
            self._report.health()
            await trio.sleep(HEALTH_SECONDS)

    def _report_held(self) -> None:
        self.metrics.live_behind.set(self._queue.behind)
        held = sum(len(consumer.held) for consumer in self._consumers.values())
        self.metrics.pending.set(held)
        self._context.health({"pending": held})

    @contextmanager
    def _activity(self, name: str) -> Iterator[None]:
        with self._context.activity(name) as activity:
            self._under_way[name] = activity
            try:
                yield
            finally:
                del self._under_way[name]

    def failed(self, name: str, error: StoreError) -> None:
        """Count a failure of a store; an activity that waits for a store is no stalled one."""
        self._report.failed(error, acknowledging=name == ACKNOWLEDGING)
        if (activity := self._under_way.get(name)) is not None:
            activity.progress()

    def _link(
        self, name: str, open_connection: Callable[[], OpenConnection]
    ) -> Link[OpenConnection]:
        return Link(open_connection, purpose=name, failed=partial(self.failed, name))

    def _consumer(self, stream: str) -> Consumer:
        settings = self._context.settings
        return Consumer(
            stream, settings.indexer_group, self._context.consumer,
            reclaim_idle_ms=settings.claim_idle_seconds * 1_000,
            max_bytes=MAX_BATCH_BYTES, block_ms=BLOCK_MS, pace_seconds=PACE_SECONDS,
            trial=self._trial,
        )  # fmt: skip

    def _open_store(self, purpose: str) -> Store:
        settings = self._context.settings
        return connect(settings.redis_url or "", name=f"{self._context.consumer}-{purpose}")

    def open_database(
        self, lock_timeout_ms: int = LOCK_TIMEOUT_MS, statement_timeout_ms: int = 60_000
    ) -> Database:
        """Return a new connection."""
        settings = self._context.settings
        return Database.connect(
            settings.database_url or "",
            schema=settings.database_schema,
            name=self._context.consumer,
            statement_timeout_ms=statement_timeout_ms,
            lock_timeout_ms=lock_timeout_ms,
            by_key=True,
        )

    def open_paired(self, **limits: int) -> Database:
        """Return a new connection to our database, for what goes on beside the batches."""
        open_store = partial(self._open_store, "pairing")
        open_database = partial(self.open_database, **limits)
        return open_paired(open_store, open_database, self._context.settings.indexer_group)

    def _seen_service(self) -> "SeenService | None":
        """Return the service for bsync, which the first indexer of a host has."""
        settings = self._context.settings
        if not settings.seen_port or self._context.instance > 1:
            return None
        # Few indexers need HTTP/2.
        from rsky_pipeline.indexer.seen import SEEN_LIMITS, SeenService

        return SeenService(
            settings.seen_host, settings.seen_port, settings.seen_token or "",
            partial(self.open_paired, **SEEN_LIMITS), self.metrics,
        )  # fmt: skip

    def _open_with_marks(self) -> Database:
        """Return a new connection, to our database, with every acknowledged transaction.

        Or not with all, since it is another server or state than before: then what is missing is
        read again and repaired. Redis is asked first, so that no batch comes between.
        """
        settings = self._context.settings
        with closing(self._open_store("marks")) as store:
            noted = noted_marks(store, settings.indexer_group)
            database = self.open_database()
            try:
                if pair(store, database, settings.indexer_group, self._hosts):
                    _log.error("Redis lost everything that it held; repos are compared")
                loss = find_loss(database, noted)
                if loss is not None:
                    since = 0.0 if loss.since is None else loss.since.timestamp()
                    from_time = None if loss.since is None else loss.since.isoformat()
                    request_reading(store, DATABASE_LOST, since, from_time, self._hosts)
                    heal_marks(database, noted)
                    self.metrics.database_losses.inc()
                    _log.error(
                        "the database lost transactions that were acknowledged; events are read "
                        "again and repos are compared",
                        extra={"transactions": loss.transactions, "since": from_time},
                    )
                self._applier.selection = load_selection(database)
            except BaseException:
                database.close()
                raise
        return database

    def _open_first_database(self) -> Database:
        """Return a new connection; before there was one, a refusal is a fault of the settings."""
        try:
            return self._open_with_marks()
        except DatabaseError as error:
            passes = isinstance(error, DatabaseUnavailableError | TransactionConflictError)
            if passes or self._was_connected:
                raise
            raise _problem(error) from error

    def close(self) -> None:
        """Close all connections."""
        self._database.close()
        self._store.close()
        self.stream_upkeep.close()
        self.table_upkeep.close()
        self.selection_upkeep.close()
        self.database_watch.close()


def acknowledge(consumer: Consumer, batch: EntryBatch, outcome: BatchOutcome, store: Store) -> bool:
    """Make dead letters of refused entries and acknowledge the others, whose rows are committed.

    May be repeated after a lost reply. Raises StoreUnavailableError, StoreRejectedError.
    """
    if outcome.mark:
        note_mark(store, consumer.group, consumer.name, batch.stream, outcome.mark)
    refused: dict[str, RefusedEntry] = {}
    for one in outcome.refused:  # of several labels of an entry the first counts
        refused.setdefault(one.item.delivery.id, one)
    for one in refused.values():
        delivery = one.item.delivery
        outcome.dead_letters += consumer.dead_letter(
            store, delivery, reason=one.reason, error=one.message, attempts=delivery.deliveries
        )
    ids = (item.delivery.id for item in batch.items)
    if done := [entry_id for entry_id in ids if entry_id not in refused]:
        consumer.acknowledge(store, done)
    return True


def _use(_connection: object) -> None:
    """Do nothing with a connection: it is opened for it."""


def _problem(error: DatabaseError) -> SettingError:
    return SettingError(
        f"PostgreSQL cannot be used: {error}. Check database_url and database_schema, and run "
        "`rsky-pipeline db check`"
    )
