"""Removes everything that an account wrote, when its host confirms that it was deleted.

The account's records go the way of deleted records, so that counts, duplicates and notifications
of others come out right; reposts and quotes that others made of its posts stay theirs. Instead of
tombstones a complete rev is left above all that was known: old events stay without effect, and the
account may come back elsewhere with a newer repo. Only what `outlives_complete_rev` is kept.
"""

from collections.abc import Mapping

from rsky_pipeline.atproto.syntax import is_tid, tid_from, tid_microseconds
from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.accounts.actors import create_actors, lock_actors
from rsky_pipeline.indexer.collections.declaration import Collection, looked_at_by_others
from rsky_pipeline.indexer.collections.values import Delete, collection_of
from rsky_pipeline.indexer.core.complete_revs import raise_complete_revs
from rsky_pipeline.indexer.core.counts import Counts
from rsky_pipeline.indexer.core.entries import now_text
from rsky_pipeline.indexer.core.locks import lock_references
from rsky_pipeline.indexer.core.plan import BatchPlan
from rsky_pipeline.indexer.core.write import write_collections

BATCH_RECORDS = 2_000  # of one transaction

_RECORDS = "SELECT uri FROM record WHERE did = %s LIMIT %s"
_FORGET_RECORDS = "DELETE FROM record WHERE uri = ANY(%b::text[])"
_FORGET_THREADS = "DELETE FROM op_thread_reply WHERE uri = ANY(%b::text[])"
_NEWEST = """
SELECT max(rev) FROM (
    SELECT "repoRev" AS rev FROM actor_sync WHERE did = %s
    UNION ALL SELECT rev FROM rsky_pipeline.repo_floor WHERE did = %s
    UNION ALL SELECT max(rev) FROM rsky_pipeline.tombstone WHERE did = %s
    UNION ALL SELECT max(rev) FROM record WHERE did = %s
) known
"""
_MARK_PURGED = "UPDATE rsky_pipeline.repo_floor SET purged = true WHERE did = %s"
_FORGET_ACCOUNT = (
    "DELETE FROM notification WHERE did = %s",
    "DELETE FROM notification WHERE author = %s",  # what outlives its record
    "DELETE FROM actor_sync WHERE did = %s",
    """
    DELETE FROM rsky_pipeline.tombstone
    WHERE did = %s AND split_part(uri, '/', 4) <> 'app.bsky.feed.post'
    """,
    "DELETE FROM rsky_pipeline.rejected_record WHERE did = %s",
    "DELETE FROM rsky_pipeline.handle_check WHERE did = %s",
    "DELETE FROM actor WHERE did = %s",
)


def purge_account(database: Database, did: str, collections: Mapping[str, Collection]) -> int:
    """Remove an account's rows; return how many records it had. Repeating it does no harm."""
    with database.transaction() as tx:
        create_actors(tx, [did], {}, now_text())
    total = 0
    with database.transaction() as tx:
        lock_actors(tx, {did})
        _leave_complete_rev(tx, did)
    while True:
        with database.transaction() as tx:
            lock_actors(tx, {did})
            removed = _purge_some(tx, did, collections)
            total += removed
            if removed < BATCH_RECORDS:
                for statement in _FORGET_ACCOUNT:
                    tx.execute(statement, (did,))
                return total


def _leave_complete_rev(tx: Transaction, did: str) -> None:
    ((newest,),) = tx.query(_NEWEST, (did, did, did, did))
    if newest is not None and is_tid(newest):
        raise_complete_revs(tx, {did: tid_from(tid_microseconds(newest) + 1)})
        tx.execute(_MARK_PURGED, (did,))


def _purge_some(tx: Transaction, did: str, collections: Mapping[str, Collection]) -> int:
    uris = [row[0] for row in tx.query(_RECORDS, (did, BATCH_RECORDS))]
    known = [uri for uri in uris if collection_of(uri) in collections]
    plan = BatchPlan(deletes=[Delete(uri, did, "") for uri in known])  # no tombstones are written
    locks = lock_references(tx, plan.deletes, looked_at_by_others(collections.values()))
    if uris:
        tx.execute(_FORGET_RECORDS, (sorted(uris),))
    counts = Counts()
    write_collections(tx, plan, collections, counts, locks, {}, purging=True)
    counts.write(tx)
    if uris:
        tx.execute(_FORGET_THREADS, (uris,))
    return len(uris)
