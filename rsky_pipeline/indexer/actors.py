"""The `actor` rows of a batch: made where missing, and locked, so that each account is serial.

Every worker locks in the order of the DIDs before it reads or writes anything else of them, so
workers with overlapping batches wait for each other and never in a circle.
"""

from collections.abc import Mapping

from rsky_pipeline.database.connection import Transaction

_LOCK = """
SELECT did FROM actor WHERE did = ANY(%b::text[]) ORDER BY did FOR NO KEY UPDATE
"""
_CREATE = """
INSERT INTO actor (did, "indexedAt") SELECT * FROM unnest(%b::text[], %b::text[])
ON CONFLICT (did) DO NOTHING RETURNING did
"""
_QUEUE = """
INSERT INTO rsky_pipeline.handle_check (did, forced, requested_at)
SELECT n.did, n.forced, now() FROM unnest(%b::text[], %b::boolean[]) AS n(did, forced)
ON CONFLICT (did) DO UPDATE SET
    forced = handle_check.forced OR EXCLUDED.forced,
    requested_at = LEAST(handle_check.requested_at, EXCLUDED.requested_at)
"""


class MissingActors(Exception):
    """Accounts of the batch have no row yet: make them in a transaction of its own, and retry.

    Inserting while other rows are locked could make two workers wait for each other.
    """

    def __init__(self, dids: list[str]) -> None:
        super().__init__(f"{len(dids)} accounts are new")
        self.dids = dids


def lock_actors(tx: Transaction, dids: set[str]) -> None:
    """Lock the accounts of a batch. Raises MissingActors."""
    wanted = sorted(dids)
    found = {row[0] for row in tx.query(_LOCK, (wanted,))}
    if len(found) < len(wanted):
        raise MissingActors([did for did in wanted if did not in found])


def create_actors(tx: Transaction, dids: list[str], seen: Mapping[str, str], now: str) -> int:
    """Make rows without a handle for new accounts and queue their handles to be looked up."""
    rows = [(did, seen.get(did, now)) for did in sorted(dids)]
    created = tx.query(_CREATE, [list(column) for column in zip(*rows, strict=True)])
    queue_handle_checks(tx, dict.fromkeys((row[0] for row in created), False))
    return len(created)


def queue_handle_checks(tx: Transaction, forced: Mapping[str, bool]) -> None:
    """Ask for a look at handles; a forced one does not mind how recent the last one is."""
    if forced:
        rows = sorted(forced.items())
        tx.execute(_QUEUE, [list(column) for column in zip(*rows, strict=True)])
