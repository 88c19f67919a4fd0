"""Writes the rows of one collection, set by set, as its declaration says.

A bounded number of statements does the work of any number of records. Everything here runs in the
transaction of the batch and under the locks on its accounts, so the rows that are read stay as they
are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rsky_pipeline.database.bulk import transpose
from rsky_pipeline.indexer.collections.declaration import Changes, Collection
from rsky_pipeline.indexer.collections.values import (
    CollectionTable,
    Notification,
    Put,
    SideTable,
    StoredRow,
)
from rsky_pipeline.indexer.core.duplicates import NaturalKey, resolve_duplicates
from rsky_pipeline.indexer.core.statements import (
    delete,
    insert,
    select,
    side_delete_sql,
    side_insert_sql,
)


@dataclass(slots=True)
class Work:
    """The part of a plan that is about one collection."""

    inserts: list[Put] = field(default_factory=list)
    updates: list[Put] = field(default_factory=list)
    deletes: list[str] = field(default_factory=list)  # uris
    overtaken: list[Put] = field(default_factory=list)  # undone by a deletion already


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
    if collection.withdraw is None:
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
    leaving += [put.uri for put in changes.updated]
    for side in sides:
        if leaving or work.deletes:
            _replace_side_rows(changes, side, sorted({*leaving, *work.deletes}))
        rows = [(put.uri, *row) for put in standing for row in put.rows.side.get(side.name, ())]
        if rows:
            written = changes.tx.query(side_insert_sql(side), transpose(rows))
            _count_side_rows(changes, side, written, 1)


def _replace_side_rows(changes: Changes, side: SideTable, owners: list[str]) -> None:
    gone = changes.tx.query(side_delete_sql(side), (owners,))
    _count_side_rows(changes, side, gone, -1)


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
