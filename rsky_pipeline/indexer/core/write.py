"""Writes the rows of a plan: `record` and tombstones, then the tables of each collection.

A bounded number of statements does the work of any number of records. Everything here runs in the
transaction of the batch and under the locks on its accounts, so the rows that are read stay as they
are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from collections.abc import Collection as Some
from dataclasses import dataclass, field
from typing import Any

from rsky_pipeline.database.bulk import transpose
from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.indexer.collections.declaration import Changes, Collection
from rsky_pipeline.indexer.collections.notifications import BatchNotifications
from rsky_pipeline.indexer.collections.values import (
    CollectionTable,
    Notification,
    Put,
    SideTable,
    StoredRow,
    collection_of,
)
from rsky_pipeline.indexer.core.counts import Counts
from rsky_pipeline.indexer.core.duplicates import NaturalKey, forget_duplicates, resolve_duplicates
from rsky_pipeline.indexer.core.entries import now_text
from rsky_pipeline.indexer.core.locks import ReferenceLocks
from rsky_pipeline.indexer.core.plan import NOTHING, BatchPlan, StoredState
from rsky_pipeline.indexer.core.statements import (
    delete,
    insert,
    select,
    side_delete_sql,
    side_insert_sql,
)

_STATES = """
SELECT uri, rev, cid, NULL FROM record WHERE uri = ANY(%b::text[])
UNION ALL SELECT uri, NULL, NULL, rev FROM rsky_pipeline.tombstone WHERE uri = ANY(%b::text[])
"""
_EMPTY = """
SELECT n.did FROM unnest(%b::text[]) AS n(did)
WHERE NOT EXISTS (SELECT FROM record r WHERE r.did = n.did)
    AND NOT EXISTS (SELECT FROM rsky_pipeline.tombstone t WHERE t.did = n.did)
"""
_COPY = 'COPY record (uri, cid, did, json, "indexedAt", rev) FROM STDIN (FORMAT BINARY)'
_FEW = 60  # rows: COPY cannot be prepared and takes a round trip more
_INSERT = """
INSERT INTO record (uri, cid, did, json, "indexedAt", rev)
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[])
"""
# takedownRef and tags belong to others and survive an update; takedownRef a deletion as well, in
# the tombstone: nobody comes out of a takedown by deleting a record and making it again.
_UPSERT = f"""{_INSERT}ON CONFLICT (uri) DO UPDATE SET
    cid = EXCLUDED.cid, json = EXCLUDED.json, "indexedAt" = EXCLUDED."indexedAt", rev = EXCLUDED.rev
"""
_TOUCH = """
UPDATE record SET rev = n.rev FROM unnest(%b::text[], %b::text[]) AS n(uri, rev)
WHERE record.uri = n.uri
"""
_DELETE = 'DELETE FROM record WHERE uri = ANY(%b::text[]) RETURNING uri, "takedownRef"'
_WRITE_TOMBSTONES = """
INSERT INTO rsky_pipeline.tombstone (uri, did, rev)
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[])
ON CONFLICT (uri) DO UPDATE SET rev = EXCLUDED.rev, deleted_at = now()
"""
_REVIVE = "DELETE FROM rsky_pipeline.tombstone WHERE uri = ANY(%b::text[]) RETURNING uri, takedown"
_KEEP_TAKEDOWNS = """
INSERT INTO rsky_pipeline.tombstone (uri, did, rev, takedown)
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[])
ON CONFLICT (uri) DO UPDATE SET takedown = EXCLUDED.takedown
"""
_TAKE_DOWN = """
UPDATE record SET "takedownRef" = n.ref FROM unnest(%b::text[], %b::text[]) AS n(uri, ref)
WHERE record.uri = n.uri
"""


@dataclass(slots=True)
class Work:
    """The part of a plan that is about one collection."""

    inserts: list[Put] = field(default_factory=list)
    updates: list[Put] = field(default_factory=list)
    deletes: list[str] = field(default_factory=list)  # uris
    overtaken: list[Put] = field(default_factory=list)  # undone by a deletion already


def empty_accounts(tx: Transaction, dids: Some[str]) -> frozenset[str]:
    """Return those of these locked accounts that have neither records nor tombstones."""
    return frozenset(row[0] for row in tx.query(_EMPTY, (sorted(dids),)))


def fetch_states(tx: Transaction, uris: Iterable[str]) -> dict[str, StoredState]:
    """Return the stored state of each uri that has one."""
    wanted = sorted(set(uris))
    if not wanted:
        return {}
    found: dict[str, StoredState] = {}
    for uri, rev, cid, tombstone in tx.query(_STATES, (wanted, wanted)):
        known = found.get(uri, NOTHING)
        found[uri] = (
            StoredState(True, rev, cid, known.tombstone)
            if tombstone is None
            else known._replace(tombstone=tombstone)
        )
    return found


def write_records(tx: Transaction, plan: BatchPlan) -> None:
    """Write the rows of `record` and the tombstones as planned.

    Many new rows are copied in, which costs PostgreSQL half of an upsert. Raises RowExistsError
    where a writer that does not take the locks on accounts has written one of them meanwhile.
    """
    if plan.inserts:
        rows = _rows(plan.inserts)
        if len(rows) < _FEW:
            tx.execute(_INSERT, transpose(rows))
        else:
            tx.copy_in(_COPY, ("text",) * 6, rows)
    if plan.updates:
        tx.execute(_UPSERT, transpose(_rows(plan.updates)))
    if plan.touches:
        uris, revs = zip(*sorted(plan.touches), strict=True)
        tx.execute(_TOUCH, (list(uris), list(revs)))
    takedowns: dict[str, str] = {}
    if plan.deletes:
        gone = tx.query(_DELETE, (sorted(item.uri for item in plan.deletes),))
        takedowns = {uri: ref for uri, ref in gone if ref is not None}
    if plan.tombstones:
        deletions = sorted((item.uri, item.did, item.rev) for item in plan.tombstones)
        tx.execute(_WRITE_TOMBSTONES, transpose(deletions))
    if takedowns:
        deleted = [item for item in plan.deletes if item.uri in takedowns]
        keep_takedowns(
            tx, [(item.uri, item.did, item.rev, takedowns[item.uri]) for item in deleted]
        )
    if plan.revived:
        revived = tx.query(_REVIVE, (sorted(plan.revived),))
        if kept := sorted((uri, ref) for uri, ref in revived if ref is not None):
            tx.execute(_TAKE_DOWN, transpose(kept))


def keep_takedowns(tx: Transaction, records: Sequence[tuple[str, str, str, str]]) -> None:
    """Keep the takedowns of deleted records (uri, did, rev, ref) for when they come back."""
    tx.execute(_KEEP_TAKEDOWNS, transpose(sorted(records)))


def _rows(puts: Iterable[Put]) -> list[tuple[str, ...]]:
    return sorted((put.uri, put.cid, put.did, put.json, put.indexed_at, put.rev) for put in puts)


def write_collections(
    tx: Transaction,
    plan: BatchPlan,
    collections: Mapping[str, Collection],
    counts: Counts,
    locks: ReferenceLocks,
    arrivals: Mapping[str, int],
    empty: Set[str] = frozenset(),
    *,
    purging: bool = False,
    rebuilding: bool = False,
) -> int:
    """Write the rows of a plan beyond `record`; return how many notifications were inserted.

    `empty` are accounts that had nothing before. `purging`: its records go with their account.
    `rebuilding`: its updates are records that have not changed, whose rows may be wrong; their
    notifications are left alone.
    Collections that judge by the rows of others (gates, follows, lists) are written after these.
    """
    work: dict[str, Work] = {}
    for put in plan.inserts:
        work.setdefault(collection_of(put.uri), Work()).inserts.append(put)
    for put in plan.updates:
        work.setdefault(collection_of(put.uri), Work()).updates.append(put)
    # Others may point at a record that never was here: its deletion counts for them too.
    for deletion in (*plan.deletes, *plan.absent):
        work.setdefault(collection_of(deletion.uri), Work()).deletes.append(deletion.uri)
    for put in plan.overtaken:
        if collections[collection_of(put.uri)].overtaken is not None:
            work.setdefault(collection_of(put.uri), Work()).overtaken.append(put)
    changed = (put.uri for put in plan.updates)
    forget_duplicates(tx, sorted([*changed, *(item.uri for item in plan.deletes)]))
    notifications, now = BatchNotifications(), now_text()
    for nsid in sorted(work, key=lambda nsid: (collections[nsid].written_last, nsid)):
        changes = Changes(
            tx, counts, notifications, locks, now, arrivals, empty, purging, rebuilding
        )
        write_collection(collections[nsid], changes, work[nsid])
    if rebuilding:
        notifications.leave({put.uri for put in plan.updates})
    return notifications.write(tx)


def write_collection(collection: Collection, changes: Changes, work: Work) -> None:
    """Bring the tables of a collection up to date and collect counts and notifications."""
    table = collection.table
    changes.deleted = work.deletes
    if table is not None:
        if table.unique:
            _write_unique(changes, NaturalKey(changes.tx, collection, table, changes.empty), work)
        else:
            _write_plain(changes, table, work)
        _write_side_tables(changes, collection.side, work)
    if changes.rebuilding and collection.withdraw is not None:
        pass  # nothing was withdrawn: the rows were wrong
    elif collection.withdraw is None:
        changes.notifications.remove(work.deletes)
    else:
        _withdraw(changes, collection.withdraw)
    if collection.renotify:
        changes.notifications.remove([put.uri for put in work.updates])
    if collection.overtaken is not None and work.overtaken:
        collection.overtaken(changes, work.overtaken)
    if collection.finish is not None:
        collection.finish(changes)
    if collection.notify is not None:
        _notify(changes, collection)


def _write_plain(changes: Changes, table: CollectionTable, work: Work) -> None:
    gone = delete(changes.tx, table, work.deletes)
    old = select(changes.tx, table, [put.uri for put in work.updates])
    puts = [put for put in (*work.inserts, *work.updates) if put.rows.main is not None]
    fresh = {row[0] for row in insert(changes.tx, table, puts, changes.empty) if row[1]}
    known = {row["uri"] for row in old}
    changes.removed = [*gone, *old]
    changes.inserted = [put for put in puts if put.uri in fresh]
    changes.updated = [put for put in puts if put.uri not in fresh]
    # A row that was there without its record has been counted by whoever wrote it.
    _count(changes, table, changes.removed, [put for put in puts if put.uri in fresh | known])


def _write_unique(changes: Changes, key: NaturalKey, work: Work) -> None:
    leaving = [*work.deletes, *(put.uri for put in work.updates)]
    gone = delete(changes.tx, key.table, leaving)
    puts = [put for put in (*work.inserts, *work.updates) if put.rows.main is not None]
    winners, displaced = resolve_duplicates(
        key, gone, puts, changes.notifications, changes.arrivals
    )
    updated = {put.uri for put in work.updates}
    changes.removed = [*gone, *displaced]
    changes.inserted = [put for put in winners if put.uri not in updated]
    changes.updated = [put for put in winners if put.uri in updated]
    _count(changes, key.table, changes.removed, winners)


def _write_side_tables(changes: Changes, sides: Sequence[SideTable], work: Work) -> None:
    standing = [*changes.inserted, *changes.updated]
    leaving = [str(row["uri"]) for row in changes.removed]
    leaving += [put.uri for put in (work.updates if changes.rebuilding else changes.updated)]
    for side in sides:
        if leaving or work.deletes:
            owners = sorted({*leaving, *work.deletes})
            gone = changes.tx.query(side_delete_sql(side), (owners,))
            _count_side_rows(changes, side, gone, -1)
        rows = [(put.uri, *row) for put in standing for row in put.rows.side.get(side.name, ())]
        if rows:
            written = changes.tx.query(side_insert_sql(side), transpose(rows))
            _count_side_rows(changes, side, written, 1)


def _count_side_rows(
    changes: Changes, side: SideTable, keys: Iterable[tuple[Any, ...]], difference: int
) -> None:
    for position, count in enumerate(side.counts):
        for row in keys:
            changes.counts.add(count.table, count.column, row[position], difference)


def _notify(changes: Changes, collection: Collection) -> None:
    assert collection.notify is not None
    notifying = [*changes.inserted, *changes.updated] if collection.renotify else changes.inserted
    for put in notifying:
        source = put if collection.renotify else put.first or put
        if source.historical and not changes.notifications.removed:
            continue  # history notifies nobody, unless it replaces a record that did
        for notification in collection.notify(source):
            changes.notifications.add(source, notification)


def _withdraw(changes: Changes, withdraw: Callable[[Mapping[str, Any], str], Notification]) -> None:
    """Notify of deleted records that stood and that no other record replaces."""
    succeeded = changes.notifications.all_replaced()
    deleted = set(changes.deleted) - succeeded
    for row in changes.removed:
        uri, now = str(row["uri"]), changes.now
        if uri in deleted:
            rkey = uri.rpartition("/")[2]
            gone = Put(uri, row["creator"], rkey, row["cid"], "", now, historical=False, json="")
            changes.notifications.add(gone, withdraw(row, now))


def _count(
    changes: Changes, table: CollectionTable, removed: Iterable[StoredRow], puts: Iterable[Put]
) -> None:
    for count in table.counts:
        position = None if count.by == "creator" else list(table.columns).index(count.by)
        for row in removed:
            changes.counts.add(count.table, count.column, row[count.by], -1)
        for put in puts:
            assert put.rows.main is not None
            key = put.did if position is None else put.rows.main[position]
            changes.counts.add(count.table, count.column, key, 1)
