"""The upkeep of streams and of our own tables, which goes on whether traffic flows or not.

Streams: gauges, trimming, and keeping hold of entries. Those that wait here for long, because the
database is away, would otherwise be taken over by other workers, and in the end be suspected of
crashing them. Tables: rows that can no longer matter are removed, in small steps. Several workers
may do both at once. Beside it, each watches what others do to the tables: locks and changes. Blocks
of operators are published for the ingester, also to a Redis that has lost them.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import trio

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import (
    DatabaseError,
    SchemaMismatchError,
    TransactionConflictError,
)
from rsky_pipeline.database.schema import Difference, differing_parts
from rsky_pipeline.database.schema.official import STAND_IN, retire_stand_in
from rsky_pipeline.database.selection import load_selection, selection_version
from rsky_pipeline.health.rules import DATABASE_LOCKED, SCHEMA, STORE_SECONDS, RuleVerdict
from rsky_pipeline.health.self_check import SelfCheck, watch
from rsky_pipeline.indexer.bsync.apply import write_waiting_ages
from rsky_pipeline.indexer.collections.post_notifications import (
    BATCH_REPLIES,
    prune_pending_replies,
)
from rsky_pipeline.indexer.core.complete_revs import prune_tombstones
from rsky_pipeline.indexer.core.rejected import forget_superseded
from rsky_pipeline.observability.indexer import IndexerMetrics
from rsky_pipeline.observability.streams import StreamMetrics
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.errors import StoreError, printable
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.consumer import Consumer
from rsky_pipeline.streams.selection import publish_selection, published_version

_log = logging.getLogger(__name__)
WATCH_SECONDS = 5.0
CLEAN_EVERY = 6  # looks at the streams
TABLES_SECONDS = 30.0
MAX_QUERY = 100  # characters that are shown
STEP_PAUSE_SECONDS = 0.1  # between two steps, so that batches get their turn

# Counting a large table takes long: its size at the last look of autovacuum is near enough.
_COUNT = """
SELECT CASE WHEN c.reltuples < 0 OR pg_relation_size(c.oid) < 32 * 1024 * 1024
    THEN (SELECT count(*) FROM rsky_pipeline.{table}) ELSE c.reltuples::bigint END
FROM pg_class c WHERE c.oid = 'rsky_pipeline.{table}'::regclass
"""

# A role without pg_read_all_stats sees the process ids of others, and not their queries. A prepared
# transaction has no process: its id is 0.
_BLOCKERS = """
SELECT p.pid, count(DISTINCT a.pid), max(extract(epoch FROM now() - a.query_start))::int,
    max(b.usename::text), max(b.application_name), max(b.state), max(b.query),
    max(extract(epoch FROM now() - b.xact_start))::int
FROM pg_stat_activity a
CROSS JOIN LATERAL unnest(pg_blocking_pids(a.pid)) AS p(pid)
LEFT JOIN pg_stat_activity b ON b.pid = p.pid
WHERE a.datname = current_database() AND a.wait_event_type = 'Lock'
    AND a.application_name LIKE 'rsky-pipeline %%'
    AND now() - a.query_start > make_interval(secs => %s)
    AND coalesce(b.application_name, '') NOT LIKE 'rsky-pipeline %%'
GROUP BY p.pid ORDER BY p.pid
"""


class StreamUpkeep:
    """Looks after the consumed streams on a connection of its own.

    `is_waiting` returns whether a store is away: then entries are not to blame for the time.
    """

    def __init__(
        self,
        open_store: Callable[[], Store],
        consumers: Sequence[Consumer],
        gauges: StreamMetrics,
        metrics: IndexerMetrics,
        self_check: SelfCheck,
        is_waiting: Callable[[], bool],
    ) -> None:
        self._consumers = consumers
        self._gauges = gauges
        self._metrics = metrics
        self._self_check = self_check
        self._is_waiting = is_waiting
        self._link = Link(
            open_store,
            purpose="upkeep of streams",
            failed=lambda _: gauges.errors.inc(),
            boundary=Boundary(metrics.internal_error),
        )
        self._looks = 0

    async def run(self) -> None:
        """Look and clean until cancelled."""
        while True:
            await self._link.attempt(self.look)
            self._looks += 1
            await trio.sleep(WATCH_SECONDS)

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def look(self, store: Store) -> None:
        """Publish the state of the streams, hold the entries in work, and clean up now and then."""
        cleaning = self._looks % CLEAN_EVERY == 0
        streams = [one.stream for one in self._consumers]
        reports = watch(store, self._gauges, streams, self._self_check)
        for consumer, report in zip(self._consumers, reports, strict=True):
            consumer.observe(report)
            consumer.hold(store, forgive=self._is_waiting())
            if cleaning:
                self._metrics.trimmed.inc(consumer.clean(store))


class TableUpkeep:
    """Cleans up our own tables on a connection of its own."""

    def __init__(self, open_database: Callable[[], Database], metrics: IndexerMetrics) -> None:
        self._metrics = metrics
        self._link = Link(
            open_database, purpose="upkeep of tables", failed=self._failed,
            boundary=Boundary(metrics.internal_error),
        )  # fmt: skip
        self._looked_at = ""  # the rejections up to this one
        self.steps = (
            self.retire_stand_in, self.prune_tombstones, self.prune_replies,
            self.prune_rejections, self.write_ages, self.count,
        )  # fmt: skip

    async def run(self) -> None:
        """Clean up now and then until cancelled; a step that fails does not keep the others."""
        while True:
            for step in self.steps:
                try:
                    while await self._link.attempt(step):  # noqa: ASYNC110 - no waiting for it
                        await trio.sleep(STEP_PAUSE_SECONDS)
                except DatabaseError as error:  # which a later try would meet again
                    extra = {"error": str(error), "statement": error.statement}
                    _log.warning("cleaning up a table failed", extra=extra)
            await trio.sleep(TABLES_SECONDS)

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def retire_stand_in(self, database: Database) -> bool:
        """Use a table that an AppView of a later release has made."""
        if retire_stand_in(database):
            _log.info("the AppView has a table of its own now", extra={"table": STAND_IN})
        return False

    def prune_tombstones(self, database: Database) -> bool:
        """Remove some tombstones that nobody needs; like all steps, return if there may be more."""
        pruned = prune_tombstones(database)
        self._metrics.pruned.inc(pruned or 0)
        return pruned is not None

    def prune_replies(self, database: Database) -> bool:
        """Remove some replies that were pending for too long."""
        return prune_pending_replies(database) == BATCH_REPLIES

    def prune_rejections(self, database: Database) -> bool:
        """Look through a page of rejections; the next round goes on with the next one."""
        self._looked_at = forget_superseded(database, self._looked_at)
        return False

    def write_ages(self, database: Database) -> bool:
        """Set the columns about the age of accounts that bsync knew before we did."""
        return write_waiting_ages(database) > 0

    def count(self, database: Database) -> bool:
        """Publish the sizes of tables."""
        self._metrics.tombstones.set(count_rows(database, "tombstone"))
        self._metrics.early_replies.set(count_rows(database, "early_reply"))
        return False

    def _failed(self, error: StoreError) -> None:
        if isinstance(error, TransactionConflictError):
            self._metrics.conflicts.inc()  # the next round does it
        else:
            self._metrics.fail(self._metrics.database_failures)


class DatabaseWatch:
    """Looks, on a connection of its own, for what others do to our tables.

    `found`: sessions whose locks our statements wait for, and differences of the schema. `lacks`: a
    missing constraint without which rows would be written twice; nothing may be written then.
    """

    def __init__(self, open_database: Callable[[], Database], *, bsync: bool) -> None:
        """`bsync` is whether bsync is read: its tables have to be there then."""
        self.lacks = ""
        self._differing = partial(differing_parts, bsync=bsync)
        self._blocked: list[RuleVerdict] = []
        self._differs: list[RuleVerdict] = []
        self._link = Link(open_database, purpose="watching the database")

    @property
    def found(self) -> list[RuleVerdict]:
        """The verdicts of the last looks."""
        return [*self._blocked, *self._differs]

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            differs = await self._link.attempt(self._differing)
            if differs is not None:
                self.note(differs)
            for _ in range(CLEAN_EVERY):
                held = await self._link.attempt(blockers) or []
                self._blocked = [RuleVerdict(DATABASE_LOCKED, "", "fail", text) for text in held]
                await trio.sleep(WATCH_SECONDS)

    def note(self, differs: Sequence[Difference]) -> None:
        """Take the differences of the schema, those of unique constraints first."""
        self._differs, self.lacks = [], ""
        if differs:
            figure = f"{len(differs)} differences, the first: {differs[0]}"
            self._differs = [RuleVerdict(SCHEMA, "", "fail", figure)]
            self.lacks = str(differs[0]) if differs[0].keeps_rows_unique else ""

    def require_unique(self) -> None:
        """Raise SchemaMismatchError while a constraint is missing that keeps rows unique."""
        if self.lacks:
            raise SchemaMismatchError(f"rows could be written twice: {self.lacks}")

    def close(self) -> None:
        """Close the connection."""
        self._link.close()


class SelectionUpkeep:
    """Publishes what is left out, where Redis has another version of it than the database."""

    def __init__(
        self, open_store: Callable[[], Store], open_database: Callable[[], Database], group: str,
        metrics: IndexerMetrics,
    ) -> None:  # fmt: skip
        self._group = group
        boundary = Boundary(metrics.internal_error)
        self._store = Link(open_store, purpose="publishing blocks", boundary=boundary)
        self._database = Link(open_database, purpose="reading blocks", boundary=boundary)

    async def run(self) -> None:
        """Look now and then until cancelled."""
        while True:
            version = await self._database.attempt(selection_version)
            published = await self._store.attempt(partial(published_version, group=self._group))
            if version is not None and version != published:
                await self._publish()
            await trio.sleep(WATCH_SECONDS)

    async def _publish(self) -> None:
        selection = await self._database.attempt(load_selection)
        if selection is not None:
            await self._store.attempt(
                partial(publish_selection, group=self._group, selection=selection)
            )

    def close(self) -> None:
        """Close both connections."""
        self._store.close()
        self._database.close()


def count_rows(database: Database, table: str) -> int:
    """Return the size of a table of ours, of a large one as autovacuum last saw it."""
    ((count,),) = database.query(_COUNT.format(table=table))
    return int(count)


def blockers(database: Database) -> list[str]:
    """Describe sessions of others that keep statements of this program waiting for a lock.

    Each with its process id, so that an operator may end it. Sessions that wait for each other
    within the pipeline are left out. Raises DatabaseError.
    """
    found = []
    for pid, waiting, seconds, user, program, state, query, age in database.query(
        _BLOCKERS, [STORE_SECONDS]
    ):
        held = "a prepared transaction (see pg_prepared_xacts)"
        if pid:
            who = ", ".join(text for text in (user, program, state) if text)
            text = " ".join(str(query or "").split())[:MAX_QUERY]
            since = f" for {age} s" if age is not None else ""
            held = f"pid {pid} ({who}), in a transaction{since}: {text}"
        one = "1 statement waits" if waiting == 1 else f"{waiting} statements wait"
        found.append(printable(f"{one} for {seconds} s; blocked by {held}"))
    return found
