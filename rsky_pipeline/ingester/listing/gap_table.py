"""Gaps in PostgreSQL: moved there from Redis, with the progress of their repair.

The ingester notes a gap in Redis with the events that follow it, so that it needs no database to
go on; from there gaps are moved when PostgreSQL can be reached.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import orjson

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.isolation import apply_isolated
from rsky_pipeline.database.texts import storable
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.names import GAPS

_throttled = ThrottledLog(logging.getLogger(__name__), 60.0)
_PAGE_GAPS = 100
# A repair stores its progress after every page; one without progress for so long was interrupted.
_STALE = "interval '10 minutes'"
_COLUMNS = (
    "id, host, kind, from_seq, to_seq, from_time, to_time, detected_at, status, repos_listed, "
    "repos_queued, list_cursor, error"
)


@dataclass(frozen=True, slots=True)
class GapRow:
    """A gap as it is stored; `status` is open, repairing, repaired or failed."""

    id: str
    host: str
    kind: str
    from_seq: int | None
    to_seq: int | None
    from_time: str | None
    to_time: str | None
    detected_at: datetime
    status: str
    repos_listed: int
    repos_queued: int
    list_cursor: str | None
    error: str | None


def move_gaps(store: Store, connect: Callable[[], Database]) -> int:
    """Move gaps from Redis to PostgreSQL; return their number.

    Raises the errors of both. A gap is removed from Redis only when PostgreSQL has it; one that
    PostgreSQL refuses stays there and holds up no other.
    """
    moved, start = 0, "-"
    while found := store.call("XRANGE", GAPS, start, "+", "COUNT", _PAGE_GAPS):
        with connect() as database:
            refused = apply_isolated(found, partial(_insert_gaps, database))
        for culprit in refused:
            _throttled.error("gap cannot be stored", gap=culprit.entry[0], reason=culprit.message)
        left = {culprit.entry[0] for culprit in refused}
        if stored := [entry_id for entry_id, _ in found if entry_id not in left]:
            store.call("XDEL", GAPS, *stored)
        moved += len(stored)
        start = f"({found[-1][0].decode()}"
    return moved


def _insert_gaps(database: Database, entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> None:
    with database.transaction() as tx:
        for entry_id, fields in entries:
            gap: Mapping[str, Any] = orjson.loads(fields[1])
            tx.execute(
                "INSERT INTO rsky_pipeline.gap (id, host, kind, from_seq, to_seq, from_time, "
                "to_time, detected_at) VALUES (%s, %s, %s, %s, %s, %s, %s, to_timestamp(%s)) "
                "ON CONFLICT (id) DO NOTHING",
                [
                    entry_id.decode(), gap["host"], gap["kind"], _bigint(gap["from_seq"]),
                    _bigint(gap["to_seq"]), gap["from_time"], gap["to_time"],
                    int(entry_id.split(b"-")[0]) / 1_000,
                ],
            )  # fmt: skip


def _bigint(seq: int | None) -> int | None:
    """Bound a sequence number, which may be any, to the range of the column."""
    return None if seq is None else min(seq, 2**63 - 1)


def list_gaps(database: Database) -> list[GapRow]:
    """Return all gaps, the newest first."""
    rows = database.query(f"SELECT {_COLUMNS} FROM rsky_pipeline.gap ORDER BY detected_at DESC")
    return [GapRow(*row) for row in rows]


def reopen(database: Database, ids: Sequence[str]) -> int:
    """Have gaps repaired again from the start; return how many there are of those ids."""
    return database.execute(
        "UPDATE rsky_pipeline.gap SET status = 'open', list_cursor = NULL, error = NULL, "
        "repos_listed = 0, repos_queued = 0, updated_at = now() WHERE id = ANY(%s)",
        [list(ids)],
    )


def claim(database: Database, hosts: Sequence[str]) -> GapRow | None:
    """Take one gap of these hosts to repair, or one whose repair was interrupted."""
    rows = database.query(
        "UPDATE rsky_pipeline.gap SET status = 'repairing', updated_at = now() WHERE id = ("
        " SELECT id FROM rsky_pipeline.gap WHERE host = ANY(%s) AND (status = 'open'"
        f"  OR (status IN ('repairing', 'failed') AND updated_at < now() - {_STALE}))"
        " ORDER BY detected_at LIMIT 1 FOR UPDATE SKIP LOCKED)"
        f" RETURNING {_COLUMNS}",
        [list(hosts)],
    )
    return GapRow(*rows[0]) if rows else None


def note(
    database: Database,
    gap: GapRow,
    status: str,
    *,
    listed: int,
    queued: int,
    cursor: str | None,
    error: str | None = None,
) -> None:
    """Note how far the repair of a gap is.

    A cursor that cannot be stored as the host gave it is left out: a repair that is interrupted
    then begins anew.
    """
    if cursor is not None and storable(cursor) != cursor:
        cursor = None
    database.execute(
        "UPDATE rsky_pipeline.gap SET status = %s, repos_listed = %s, repos_queued = %s, "
        "list_cursor = %s, error = %s, updated_at = now() WHERE id = %s",
        [status, listed, queued, cursor, None if error is None else storable(error), gap.id],
    )


def stored_revs(database: Database, dids: Sequence[str]) -> dict[str, str]:
    """Return the rev that the index has of each repo, where it has one."""
    rows = database.query(
        'SELECT did, "repoRev" FROM actor_sync WHERE did = ANY(%s) AND "repoRev" IS NOT NULL',
        [list(dids)],
    )
    return {row[0]: row[1] for row in rows}


def stored_statuses(database: Database, dids: Sequence[str]) -> dict[str, str | None]:
    """Return the hosting status that is stored of each account; None for an active one."""
    rows = database.query(
        'SELECT did, "upstreamStatus" FROM actor WHERE did = ANY(%s)', [list(dids)]
    )
    return {row[0]: row[1] for row in rows}
