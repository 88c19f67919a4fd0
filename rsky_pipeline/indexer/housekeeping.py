"""Keeps the pipeline's own tables small: what can no longer matter is removed, in small steps."""

import logging
from collections.abc import Callable

import trio

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError, TransactionConflict
from rsky_pipeline.indexer.collections.pending_replies import PRUNE_BATCH, prune_pending_replies
from rsky_pipeline.indexer.core.complete_revs import prune_tombstones
from rsky_pipeline.indexer.core.rejected import forget_superseded
from rsky_pipeline.observability.indexer import IndexerMetrics
from rsky_pipeline.runtime.threads import StoreThread

_log = logging.getLogger(__name__)
EVERY_SECONDS = 30.0
STEP_PAUSE_SECONDS = 0.1  # between two steps, so that batches get their turn

# Counting a large table takes long: its size at the last look of autovacuum is near enough.
_COUNT = """
SELECT CASE WHEN c.reltuples < 0 OR pg_relation_size(c.oid) < 32 * 1024 * 1024
    THEN (SELECT count(*) FROM rsky_pipeline.{table}) ELSE c.reltuples::bigint END
FROM pg_class c WHERE c.oid = 'rsky_pipeline.{table}'::regclass
"""


class Housekeeping:
    """Cleans up on a connection of its own; several workers may do it at once."""

    def __init__(self, open_database: Callable[[], Database], metrics: IndexerMetrics) -> None:
        self._open_database = open_database
        self._metrics = metrics
        self._database: Database | None = None
        self._thread = StoreThread()
        self._looked_at = ""  # the rejections up to this one

    async def run(self) -> None:
        """Clean up now and then until cancelled."""
        while True:
            try:
                while await self._thread.call(self.step):  # noqa: ASYNC110 - no waiting for it
                    await trio.sleep(STEP_PAUSE_SECONDS)
            except TransactionConflict:
                self._metrics.conflicts.inc()  # the next round does it
            except DatabaseError as error:
                self._metrics.fail(self._metrics.database_failures)
                _log.warning("cleaning up is tried again later", extra={"error": str(error)})
                await self._thread.call(self.close)
            await trio.sleep(EVERY_SECONDS)

    def step(self) -> bool:
        """Do a bounded amount of work; return whether there may be more."""
        if self._database is None:
            self._database = self._open_database()
        pruned = prune_tombstones(self._database)
        self._metrics.pruned.inc(pruned or 0)
        if pruned is not None:
            return True
        if prune_pending_replies(self._database) == PRUNE_BATCH:
            return True
        self._looked_at = forget_superseded(self._database, self._looked_at)
        self._metrics.tombstones.set(count_rows(self._database, "tombstone"))
        self._metrics.early_replies.set(count_rows(self._database, "early_reply"))
        return False

    def close(self) -> None:
        """Close the connection."""
        database, self._database = self._database, None
        if database is not None:
            database.close()


def count_rows(database: Database, table: str) -> int:
    """Return the size of a table of ours, of a large one as autovacuum last saw it."""
    ((count,),) = database.query(_COUNT.format(table=table))
    return int(count)
