"""Which database it is, and whether it still has everything that was acknowledged.

The id is made with the schema (`health.pairing`). Marks are numbers: each
transaction of an indexer raises its number (`raise_mark`), and the acknowledgement of its entries
writes that number into Redis (`streams.marks`). A database that is behind Redis has lost
transactions: it failed over to a standby that was behind, or was restored from a backup.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.database.selection import SELECTION_VERSION

_RAISE = f"""
INSERT INTO rsky_pipeline.applied_mark AS mark (worker, stream, number, reached)
VALUES (%s, %s, 1, to_timestamp(%s))
ON CONFLICT (worker, stream) DO UPDATE
SET number = mark.number + 1, reached = EXCLUDED.reached, applied_at = now()
RETURNING number, ({SELECTION_VERSION})
"""
_HEAL = """
INSERT INTO rsky_pipeline.applied_mark AS mark (worker, stream, number, reached)
SELECT * FROM unnest(%b::text[], %b::text[], %b::bigint[]) AS noted, now()
ON CONFLICT (worker, stream) DO UPDATE SET number = greatest(mark.number, EXCLUDED.number)
"""

_LAST_WRITTEN = """
SELECT min(reached) FROM rsky_pipeline.applied_mark
WHERE applied_at > (SELECT max(applied_at) FROM rsky_pipeline.applied_mark) - interval '1 hour'
"""

# Data that is restored into a database with a schema adds the id of its own: the older one, which
# Redis notes, stands.
_ID = "SELECT id FROM rsky_pipeline.installation ORDER BY made_at, id LIMIT 1"
_GIVE_ID = """
INSERT INTO rsky_pipeline.installation (id)
SELECT gen_random_uuid() WHERE NOT EXISTS (SELECT FROM rsky_pipeline.installation)
"""

MarkKey = tuple[str, str]  # worker, stream


@dataclass(frozen=True, slots=True)
class DatabaseLoss:
    """Transactions that were acknowledged and are not in the database.

    `since` is when the oldest entries that may be missing came into their stream; None if the
    database does not show it.
    """

    transactions: int
    since: datetime | None


def database_id(database: Database) -> str | None:
    """Return the id that the database has had since its schema was made; copies have it too.

    None if its schema is older than ids or not there yet, or if somebody removed the id.
    """
    if not _knows_ids(database):
        return None
    rows = database.query(_ID)
    return str(rows[0][0]) if rows else None


def give_id(database: Database) -> str | None:
    """Return the id of the database, a new one where somebody removed it; None if it is too old."""
    if not _knows_ids(database):
        return None
    with database.transaction() as tx:
        tx.execute("LOCK TABLE rsky_pipeline.installation IN EXCLUSIVE MODE")
        tx.execute(_GIVE_ID)
        return str(tx.query(_ID)[0][0])


def _knows_ids(database: Database) -> bool:
    found = database.query("SELECT to_regclass('rsky_pipeline.installation')")
    return found[0][0] is not None


def last_written(database: Database) -> datetime | None:
    """Return when entries came into their streams that may not have been written any more.

    None if nothing was ever written. Workers that had ended long before do not count.
    """
    return cast("datetime | None", database.query(_LAST_WRITTEN)[0][0])


def raise_mark(tx: Transaction, worker: str, stream: str, reached: float) -> tuple[int, int]:
    """Raise the number of a worker on a stream in its transaction.

    `reached` is when the oldest of the entries came into the stream, in seconds since 1970. Returns
    the number, and the version of what is left out (`database.selection`).
    """
    ((number, version),) = tx.query(_RAISE, (worker, stream, reached))
    return int(number), int(version)


def find_loss(database: Database, noted: Mapping[MarkKey, int]) -> DatabaseLoss | None:
    """Return the transactions that the database lacks; `noted` was read from Redis before."""
    rows = database.query("SELECT worker, stream, number, reached FROM rsky_pipeline.applied_mark")
    stored = {(worker, stream): (number, reached) for worker, stream, number, reached in rows}
    missing = 0
    times: list[datetime | None] = []
    for key, number in noted.items():
        has, reached = stored.get(key, (0, None))
        if has < number:
            missing += number - has
            times.append(reached)
    if not missing:
        return None
    known = [time for time in times if time is not None]
    # A worker that was new then has no row: the others show when that was.
    if len(known) < len(times):
        known += [reached for _, reached in stored.values()]
    return DatabaseLoss(missing, min(known, default=None))


def heal_marks(database: Database, noted: Mapping[MarkKey, int]) -> None:
    """Set the numbers to those of Redis, once the loss is recorded."""
    keys = sorted(noted)
    columns = [[key[0] for key in keys], [key[1] for key in keys], [noted[key] for key in keys]]
    database.execute(_HEAL, columns)
