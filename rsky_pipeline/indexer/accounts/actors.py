"""The `actor` rows of a batch: made where missing, and locked.

Every worker locks the rows in the order of the DIDs before it reads or writes anything else of
them, so that each account is serial, and workers with overlapping batches wait for each other and
never in a circle.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from rsky_pipeline.atproto.datetimes import format_utc
from rsky_pipeline.database.bulk import transpose
from rsky_pipeline.database.connection import Transaction

# A handle is looked up again when an event comes after so long (the official times).
HANDLE_AGE = timedelta(hours=24)
NO_HANDLE_AGE = timedelta(hours=1)

_LOCK = """
SELECT did, handle IS NOT NULL, "indexedAt" FROM actor WHERE did = ANY(%b::text[])
ORDER BY did FOR NO KEY UPDATE
"""
_CREATE = """
INSERT INTO actor (did, "indexedAt") SELECT * FROM unnest(%b::text[], %b::text[])
ON CONFLICT (did) DO NOTHING RETURNING did
"""
# The takedown of an account that was purged; it moves back into the row.
_TAKE_DOWN = """
WITH kept AS (
    DELETE FROM rsky_pipeline.account_takedown WHERE did = ANY(%b::text[]) RETURNING did, ref
)
UPDATE actor SET "takedownRef" = kept.ref FROM kept WHERE actor.did = kept.did
"""
_FORGET = (
    """
    INSERT INTO rsky_pipeline.account_takedown (did, ref)
    SELECT did, "takedownRef" FROM actor WHERE did = ANY(%b::text[]) AND "takedownRef" IS NOT NULL
    ON CONFLICT (did) DO UPDATE SET ref = EXCLUDED.ref
    """,
    "DELETE FROM rsky_pipeline.handle_check WHERE did = ANY(%b::text[])",
    "DELETE FROM actor WHERE did = ANY(%b::text[])",
)
_QUEUE = """
INSERT INTO rsky_pipeline.handle_check (did, forced, requested_at)
SELECT n.did, n.forced, now() FROM unnest(%b::text[], %b::boolean[]) AS n(did, forced)
ON CONFLICT (did) DO UPDATE SET forced = true, attempts = 0,
    requested_at = LEAST(handle_check.requested_at, EXCLUDED.requested_at)
WHERE EXCLUDED.forced
"""


class KnownActor(NamedTuple):
    """The last look-up of an account's handle, as its `actor` row has it."""

    did: str
    has_handle: bool
    looked_at: str


def lock_actors(tx: Transaction, dids: Iterable[str]) -> list[KnownActor]:
    """Lock accounts, and return those that have a row.

    A row that is missing must be made in a transaction of its own: inserting while other rows are
    locked could make two workers wait for each other.
    """
    return [KnownActor._make(row) for row in tx.query(_LOCK, (sorted(dids),))]


def due_handles(known: Iterable[KnownActor], active: Mapping[str, str], now: str) -> list[str]:
    """Return accounts whose handle is due to be looked up again, since they are active.

    `active` has the time of the newest live event of accounts; a time in the future is now.
    """
    if not active:
        return []
    latest = min(max(active.values()), now)
    handle, none = _before(latest, HANDLE_AGE), _before(latest, NO_HANDLE_AGE)
    due: list[str] = []
    for actor in known:
        if actor.looked_at >= (handle if actor.has_handle else none) or actor.did not in active:
            continue
        age = HANDLE_AGE if actor.has_handle else NO_HANDLE_AGE
        if actor.looked_at < _before(min(active[actor.did], now), age):
            due.append(actor.did)
    return due


def _before(time: str, age: timedelta) -> str:
    try:
        return format_utc(datetime.fromisoformat(time) - age)
    except (ValueError, OverflowError):
        return ""  # the year 0, or the first day of the year 1: nothing is due


def create_actors(
    tx: Transaction, dids: Iterable[str], seen: Mapping[str, str], now: str
) -> list[str]:
    """Make rows without a handle for new accounts and queue their handles to be looked up.

    Returns the accounts that had none before.
    """
    rows = [(did, seen.get(did, now)) for did in sorted(dids)]
    created = [row[0] for row in tx.query(_CREATE, transpose(rows))]
    if created:
        tx.execute(_TAKE_DOWN, (created,))
    queue_handle_checks(tx, dict.fromkeys(created, False))
    return created


def forget_actors(tx: Transaction, dids: Iterable[str]) -> None:
    """Remove the rows of accounts and what waits for them; their takedowns are kept."""
    wanted = sorted(dids)
    for statement in _FORGET:
        tx.execute(statement, (wanted,))


def queue_handle_checks(tx: Transaction, forced: Mapping[str, bool]) -> None:
    """Ask for a look at handles.

    A forced look does not wait for the end of a back-off, and the document is fetched anew.
    """
    if forced:
        rows = sorted(forced.items())
        tx.execute(_QUEUE, [list(column) for column in zip(*rows, strict=True)])
