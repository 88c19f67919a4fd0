"""Whether Redis and the database belong together.

Redis holds how far the network was read and what waits to be written, the database what was
written. With the database of another installation both would look well, and every event between
would be in neither. So each database has an id, and Redis notes for each consumer group of indexers
the id of the database that it writes: the first indexer does, and all that use both compare.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.marks import database_id, give_id, last_written
from rsky_pipeline.runtime.errors import SettingError
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.gap import REDIS_LOST
from rsky_pipeline.streams.marks import (
    note_database,
    noted_database,
    noted_marks,
    request_reading,
)


class MismatchError(SettingError):
    """The database is not the one that Redis belongs to."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """The id of the database that a group writes, as Redis notes it, and that of the database.

    None: nothing was noted yet, or the database has no id (`database_id`).
    """

    group: str
    noted: str | None
    database: str | None

    @property
    def mismatch(self) -> bool:
        """Whether Redis notes another database; one without an id is another one."""
        return self.noted is not None and self.noted != self.database

    def describe(self) -> str:
        """Return a sentence for people, with the remedy."""
        if self.mismatch:
            found = "one without an id" if self.database is None else self.database
            return (
                f"Redis belongs to the database {self.noted} (consumer group {self.group}), but "
                f"database_url leads to {found}: correct redis_url or database_url, or run "
                "`rsky-pipeline db pair --force` if they are to belong together from now on"
            )
        if self.database is None:
            return "the database has no id yet: the first indexer gives it one"
        if self.noted is None:
            return f"Redis notes no database for {self.group}: the first indexer will tie them"
        return f"Redis and the database {self.database} belong together"


def look(store: Store, database: Database, group: str) -> Pairing:
    """Return how they stand. Raises StoreError."""
    return Pairing(group, noted_database(store, group), database_id(database))


def require_pair(store: Store, database: Database, group: str) -> Pairing:
    """Raise MismatchError if they are of different installations."""
    found = look(store, database, group)
    if found.mismatch:
        raise MismatchError(found.describe())
    return found


def open_paired(
    open_store: Callable[[], Store], open_database: Callable[[], Database], group: str
) -> Database:
    """Return a connection to the database that Redis belongs to.

    Raises MismatchError, StoreError.
    """
    with closing(open_store()) as store:
        database = open_database()
        try:
            require_pair(store, database, group)
        except BaseException:
            database.close()
            raise
    return database


def pair(store: Store, database: Database, group: str, relays: Sequence[str]) -> bool:
    """Note the database in a Redis that has none; return whether that Redis had lost everything.

    It has if the database was written before and Redis shows nothing of it. What lies between the
    last written rows and the cursors of this Redis is then unknown: a gap of each relay has its
    repos listed and compared. Raises MismatchError, StoreError.
    """
    found = require_pair(store, database, group)
    own = found.database or give_id(database)
    if own is None or found.noted is not None:
        return False
    written = None if noted_marks(store, group) else last_written(database)
    if written is not None:
        request_reading(store, REDIS_LOST, written.timestamp(), written.isoformat(), relays)
    note_database(store, group, own)
    return written is not None
