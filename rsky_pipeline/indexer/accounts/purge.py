"""Removes everything that an account wrote, when its host confirms that it was deleted, or on
request of an operator (`db purge`).

The account's records go the way of deleted records, so that counts, duplicates and notifications
of others come out right; reposts and quotes that others made of its posts stay theirs. Instead of
tombstones a complete rev is left above all that was known and all that can have been written before
the deletion: old events stay without effect (`without_overtaken`), and the account may come back
elsewhere with a newer repo. Only what `outlives_complete_rev` is kept, and takedowns: an account or
a record that was taken down is so again when it comes back.
"""

from collections.abc import Collection as Some
from collections.abc import Mapping, Sequence
from datetime import datetime

from rsky_pipeline.atproto.syntax import is_rev, rev_microseconds, tid_from
from rsky_pipeline.configuration.selection import path_prefixes
from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.accounts.actors import create_actors, forget_actors, lock_actors
from rsky_pipeline.indexer.accounts.statuses import AccountEvents, fetch_account_events
from rsky_pipeline.indexer.collections.declaration import Collection, looked_at_by_others
from rsky_pipeline.indexer.collections.values import Delete, Put, collection_of
from rsky_pipeline.indexer.core.complete_revs import raise_complete_revs
from rsky_pipeline.indexer.core.counts import Counts
from rsky_pipeline.indexer.core.entries import (
    AccountChange,
    IdentityChange,
    Reading,
    RepoRev,
    now_text,
)
from rsky_pipeline.indexer.core.locks import lock_references
from rsky_pipeline.indexer.core.plan import BatchPlan, outlives_complete_rev
from rsky_pipeline.indexer.core.write import keep_takedowns, write_collections

BATCH_RECORDS = 2_000  # of one transaction

_RECORDS = "SELECT uri FROM record WHERE did = %s LIMIT %s"
_OF_COLLECTIONS = """
SELECT uri FROM record
WHERE did = %s AND EXISTS (
    SELECT FROM unnest(%b::text[]) AS wanted(prefix) WHERE starts_with(uri, wanted.prefix)
)
LIMIT %s
"""
_FORGET_RECORDS = """
DELETE FROM record WHERE uri = ANY(%b::text[]) RETURNING uri, "takedownRef"
"""
_FORGET_THREADS = "DELETE FROM op_thread_reply WHERE uri = ANY(%b::text[])"
_NEWEST = """
SELECT max(rev) FROM (
    SELECT "repoRev" AS rev FROM actor_sync WHERE did = %s
    UNION ALL SELECT rev FROM rsky_pipeline.repo_floor WHERE did = %s
    UNION ALL SELECT max(rev) FROM rsky_pipeline.tombstone WHERE did = %s
    UNION ALL SELECT max(rev) FROM record WHERE did = %s
) known
"""
_PURGED_BEFORE = "SELECT by_block FROM rsky_pipeline.repo_floor WHERE did = %s AND purged"
_MARK_PURGED = "UPDATE rsky_pipeline.repo_floor SET purged = true, by_block = %s WHERE did = %s"
_FORGET_ACCOUNT = (
    "DELETE FROM notification WHERE did = %s",
    "DELETE FROM notification WHERE author = %s",  # what outlives its record
    "DELETE FROM actor_sync WHERE did = %s",
    """
    DELETE FROM rsky_pipeline.tombstone
    WHERE did = %s AND split_part(uri, '/', 4) <> 'app.bsky.feed.post'
        AND takedown IS NULL
    """,
    "DELETE FROM rsky_pipeline.rejected_record WHERE did = %s",
)


def purge_account(
    database: Database, did: str, collections: Mapping[str, Collection], until: str = "",
    *, by_block: bool = False,
) -> int:  # fmt: skip
    """Remove an account's rows; return how many records it had. Repeating it does no harm.

    Events up to the time `until` stay without effect, also where nothing is known of the account.
    `by_block`: the purge is forgotten with its block, unless the account was purged otherwise, too.
    """
    with database.transaction() as tx:
        create_actors(tx, [did], {}, now_text())
    total = 0
    with database.transaction() as tx:
        lock_actors(tx, {did})
        _leave_complete_rev(tx, did, until, by_block=by_block)
    while True:
        with database.transaction() as tx:
            lock_actors(tx, {did})
            removed = _purge_some(tx, did, collections)
            total += removed
            if removed < BATCH_RECORDS:
                for statement in _FORGET_ACCOUNT:
                    tx.execute(statement, (did,))
                forget_actors(tx, [did])
                return total


def purge_records(
    database: Database, did: str, collections: Mapping[str, Collection], nsids: Sequence[str]
) -> int:
    """Remove an account's records of some collections (or prefixes); return how many it had.

    No tombstones are left: the records come back when the repo is fetched.
    """
    prefixes = [f"at://{did}/{path}" for path in path_prefixes(nsids)]
    total = 0
    while True:
        with database.transaction() as tx:
            lock_actors(tx, {did})
            rows = tx.query(_OF_COLLECTIONS, (did, prefixes, BATCH_RECORDS))
            _remove(tx, did, [uri for (uri,) in rows], collections)
        total += len(rows)
        if len(rows) < BATCH_RECORDS:
            return total


def _leave_complete_rev(tx: Transaction, did: str, until: str, *, by_block: bool) -> None:
    """Raise the complete rev above all known revs, and to the time of the deletion and `until`.

    Revs and the times of account events are of one clock, that of the account's host. Entries that
    another worker has not applied yet are below it as well.
    """
    ((newest,),) = tx.query(_NEWEST, (did, did, did, did))
    above = rev_microseconds(newest) + 1 if newest is not None and is_rev(newest) else 0
    above = max(above, _microseconds(until))
    for events in fetch_account_events(tx, [did]).values():
        if events.standing is not None:
            above = max(above, _microseconds(min(events.standing.latest, now_text())))
    if above:
        before = tx.query(_PURGED_BEFORE, (did,))
        raise_complete_revs(tx, {did: tid_from(above)})
        tx.execute(_MARK_PURGED, (by_block and before in ([], [(True,)]), did))


def _microseconds(time: str) -> int:
    """Return the first microsecond after a time in its normal form, 0 for one that is absurd."""
    try:
        return max(0, int(datetime.fromisoformat(time).timestamp() * 1_000) + 1) * 1_000
    except (ValueError, OverflowError):
        return 0


def _purge_some(tx: Transaction, did: str, collections: Mapping[str, Collection]) -> int:
    uris = [row[0] for row in tx.query(_RECORDS, (did, BATCH_RECORDS))]
    _remove(tx, did, uris, collections)
    return len(uris)


def _remove(
    tx: Transaction, did: str, uris: Sequence[str], collections: Mapping[str, Collection]
) -> None:
    known = [uri for uri in uris if collection_of(uri) in collections]
    plan = BatchPlan(deletes=[Delete(uri, did, "") for uri in known])  # no tombstones are written
    locks = lock_references(tx, plan.deletes, looked_at_by_others(collections.values()))
    if uris:
        gone = tx.query(_FORGET_RECORDS, (sorted(uris),))
        # Without a rev: no state of the record is refused because of it.
        if takedowns := [(uri, did, "", ref) for uri, ref in gone if ref is not None]:
            keep_takedowns(tx, takedowns)
    counts = Counts()
    write_collections(tx, plan, collections, counts, locks, {}, purging=True)
    counts.write(tx)
    if uris:
        tx.execute(_FORGET_THREADS, (list(uris),))


_PURGES = "SELECT did, rev FROM rsky_pipeline.repo_floor WHERE did = ANY(%b::text[]) AND purged"


def without_overtaken(
    tx: Transaction, readings: list[Reading], created: Some[str]
) -> tuple[list[Reading], set[str]]:
    """Leave out events of before a purge; for accounts whose rows this transaction has created.

    Pending entries of a worker that died, history that waited in its stream and dead letters come
    at any time. Returns the readings that are left, and the accounts that need no row for them: the
    rows are removed again. Asked after the rows were created, since a purge that began before has
    left its mark by then, and one that begins later finds and removes the rows.

    Deletions of posts are left in: reposts by others may ask for their tombstones at any time, and
    nothing else of the account is there to be locked.
    """
    purged: dict[str, str] = dict(tx.query(_PURGES, (sorted(created),)))
    if not purged:
        return readings, set()
    events = fetch_account_events(tx, purged)
    left: list[Reading] = []
    gone = set(purged)
    for reading in readings:
        rev = purged.get(reading.did)
        if rev is None or not _is_overtaken(reading, rev, events.get(reading.did)):
            left.append(reading)
            gone.discard(reading.did)
        elif isinstance(reading.change, Delete) and outlives_complete_rev(reading.change.uri):
            left.append(reading._replace(rev=None))
    if gone:
        forget_actors(tx, gone)
    return left, gone


def _is_overtaken(reading: Reading, purged_at: str, events: AccountEvents | None) -> bool:
    """Return whether an event is of before the deletion of a purged account.

    Account events are taken into `events`, in the order of their arrival.
    """
    change, refused = reading.change, reading.refused
    if isinstance(change, AccountChange):
        return events is not None and not events.take(change)
    if isinstance(change, IdentityChange):
        deletion = None if events is None else events.standing
        return deletion is not None and reading.time <= deletion.latest
    if reading.rev is not None:
        return reading.rev.rev < purged_at
    if isinstance(change, Put | Delete | RepoRev):
        return change.rev < purged_at
    return refused is not None and refused.rev < purged_at
