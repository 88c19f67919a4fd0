"""The `record` table and the tombstones: the states that every decision is made from."""

from collections.abc import Collection, Iterable, Sequence

from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.indexer.collections.values import Delete, Put
from rsky_pipeline.indexer.core.plan import BatchPlan, StoredState

_RECORDS = "SELECT uri, rev, cid FROM record WHERE uri = ANY(%b::text[])"
_TOMBSTONES = "SELECT uri, rev FROM rsky_pipeline.tombstone WHERE uri = ANY(%b::text[])"
_EMPTY = """
SELECT n.did FROM unnest(%b::text[]) AS n(did)
WHERE NOT EXISTS (SELECT FROM record r WHERE r.did = n.did)
    AND NOT EXISTS (SELECT FROM rsky_pipeline.tombstone t WHERE t.did = n.did)
"""
_COPY = 'COPY record (uri, cid, did, json, "indexedAt", rev) FROM STDIN (FORMAT BINARY)'
# takedownRef and tags belong to others and survive an update.
_UPSERT = """
INSERT INTO record (uri, cid, did, json, "indexedAt", rev)
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[])
ON CONFLICT (uri) DO UPDATE SET
    cid = EXCLUDED.cid, json = EXCLUDED.json, "indexedAt" = EXCLUDED."indexedAt", rev = EXCLUDED.rev
"""
_TOUCH = """
UPDATE record SET rev = n.rev FROM unnest(%b::text[], %b::text[]) AS n(uri, rev)
WHERE record.uri = n.uri
"""
_DELETE = "DELETE FROM record WHERE uri = ANY(%b::text[])"
_BURY = """
INSERT INTO rsky_pipeline.tombstone (uri, did, rev)
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[])
ON CONFLICT (uri) DO UPDATE SET rev = EXCLUDED.rev, deleted_at = now()
"""
_REVIVE = "DELETE FROM rsky_pipeline.tombstone WHERE uri = ANY(%b::text[])"


def empty_accounts(tx: Transaction, dids: Collection[str]) -> frozenset[str]:
    """Return those of these locked accounts that have neither records nor tombstones."""
    return frozenset(row[0] for row in tx.query(_EMPTY, (sorted(dids),)))


def fetch_states(tx: Transaction, uris: Iterable[str]) -> dict[str, StoredState]:
    """Return the stored state of each uri that has one."""
    wanted = sorted(set(uris))
    if not wanted:
        return {}
    found = {
        uri: StoredState(exists=True, rev=rev, cid=cid)
        for uri, rev, cid in tx.query(_RECORDS, (wanted,))
    }
    for uri, rev in tx.query(_TOMBSTONES, (wanted,)):
        record = found.get(uri, StoredState())
        found[uri] = StoredState(record.exists, record.rev, record.cid, tombstone=rev)
    return found


def write_records(tx: Transaction, plan: BatchPlan) -> None:
    """Write the rows of `record` and the tombstones as planned.

    New rows are copied in, which costs PostgreSQL half of an upsert. Raises RowExistsError where a
    writer that does not take the locks on accounts has written one of them meanwhile.
    """
    if plan.inserts:
        tx.copy_in(_COPY, ("text",) * 6, _rows(plan.inserts))
    _upsert(tx, plan.updates)
    if plan.touches:
        uris, revs = zip(*sorted(plan.touches), strict=True)
        tx.execute(_TOUCH, (list(uris), list(revs)))
    if plan.deletes:
        tx.execute(_DELETE, (sorted(item.uri for item in plan.deletes),))
    _bury(tx, plan.tombstones)
    if plan.revived:
        tx.execute(_REVIVE, (sorted(plan.revived),))


def _upsert(tx: Transaction, puts: Sequence[Put]) -> None:
    if puts:
        tx.execute(_UPSERT, [list(column) for column in zip(*_rows(puts), strict=True)])


def _rows(puts: Iterable[Put]) -> list[tuple[str, ...]]:
    return sorted((put.uri, put.cid, put.did, put.json, put.indexed_at, put.rev) for put in puts)


def _bury(tx: Transaction, deletes: Sequence[Delete]) -> None:
    if deletes:
        rows = sorted((item.uri, item.did, item.rev) for item in deletes)
        tx.execute(_BURY, [list(column) for column in zip(*rows, strict=True)])
