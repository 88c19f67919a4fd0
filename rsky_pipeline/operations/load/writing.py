"""Writes repos in large transactions, and isolates records that PostgreSQL rejects.

Blocking. Writes are idempotent: rows that already exist do not change.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.isolation import Culprit, Isolation, retry_conflicts
from rsky_pipeline.indexer.collections.declaration import Collection, looked_at_by_others
from rsky_pipeline.indexer.collections.values import Delete, Put
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.entries import Reading
from rsky_pipeline.indexer.core.locks import needs_locks
from rsky_pipeline.runtime.link import Link

BATCH_RECORDS = 10_000  # records of one transaction, or a little more
_MAX_CONFLICTS = 20
_UNAVAILABLE_SECONDS = 60.0

Result = TypeVar("Result")


class LoadWriter:
    """Writes over one connection, which is opened again when it is lost."""

    def __init__(
        self, open_database: Callable[[], Database], collections: Mapping[str, Collection],
        *, counting: bool = True,
    ) -> None:  # fmt: skip
        """Without `counting` counts are postponed (`initial`)."""
        self._counting = counting
        self._link = Link(open_database, purpose="load")
        self._collections = collections
        self._looked_at = looked_at_by_others(collections.values())
        # Nobody waits beside a command: whoever runs it acts on the error, and loads again.
        self._isolation: Isolation[Reading] = Isolation(lambda reading: reading.did, 0.0)

    def write(self, readings: Sequence[Reading]) -> list[Culprit[Reading]]:
        """Write readings; returns the rejected ones.

        Raises DatabaseError if the server stays unavailable, or for an error that hits all
        readings of several accounts in a row.
        """
        return self._isolation.apply(
            self._parts(readings),
            lambda part: self.run(
                lambda database: apply_batch(
                    database, part, self._collections, bulk=True, counting=self._counting
                )
            ),
        )

    def _parts(self, readings: Sequence[Reading]) -> tuple[list[Reading], list[Reading]]:
        """Split readings into those that need no locks shared with other processes, and others.

        Posts and closing readings are in the second list, closing readings last.
        """
        free: list[Reading] = []
        others: list[Reading] = []
        for reading in readings:
            change = reading.change
            is_free = isinstance(change, Put | Delete) and not needs_locks(change, self._looked_at)
            (free if is_free else others).append(reading)
        return free, others

    def run(self, action: Callable[[Database], Result]) -> Result:
        """Call with a connection; again after a conflict, and while PostgreSQL is unavailable."""
        return self._link.insist(
            lambda database: retry_conflicts(partial(action, database), _MAX_CONFLICTS),
            seconds=_UNAVAILABLE_SECONDS,
        )

    def close(self) -> None:
        """Close the connection."""
        self._link.close()
