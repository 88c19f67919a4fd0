"""The declaration of a kind of record: its table, and the consequences of its records.

A collection is one `Collection` value in a module of this package; `registry` finds it. Everything
generic (rev gate, duplicates, updates, deletes, counts, notifications) follows from the declaration
and is done by `core.write`. Everything else is a function that takes `Changes`: the rows of the
collection that one batch really wrote, and the locks, counts and notifications of its transaction.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.indexer.collections.fields import Record
from rsky_pipeline.indexer.collections.notifications import BatchNotifications
from rsky_pipeline.indexer.collections.values import (
    CollectionTable,
    Notification,
    Operation,
    Put,
    Row,
    Rows,
    SideTable,
    StoredRow,
)
from rsky_pipeline.indexer.core.counts import Counts
from rsky_pipeline.indexer.core.locks import ReferenceLocks


@dataclass(slots=True)
class Changes:
    """The changes of one collection in one transaction, filled by `core.write`."""

    tx: Transaction
    counts: Counts
    notifications: BatchNotifications
    locks: ReferenceLocks
    now: str
    arrivals: Mapping[str, int]  # place in the batch of every uri that it changes
    empty: Set[str] = frozenset()  # accounts that had nothing before this batch
    purging: bool = False  # records go with their account; what others wrote stays as it is
    rebuilding: bool = False  # `updated` and `inserted` were known before: they are no news
    deleted: list[str] = field(default_factory=list)  # uris of records that are gone
    inserted: list[Put] = field(default_factory=list)  # rows that stand and did not before
    updated: list[Put] = field(default_factory=list)  # rows that stand with a new content
    removed: list[StoredRow] = field(default_factory=list)  # rows that stood: `kept` columns


@dataclass(frozen=True, slots=True)
class Finished:
    """The traces that `finish` leaves of a standing record, as far as they can be known later."""

    columns: Mapping[str, bool]  # of the row in the collection's table; NULL is False
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)  # of `Collection.traces`
    certain: Sequence[Notification] = ()  # if the record was news
    possible: Set[tuple[str, str, str | None]] = frozenset()  # (did, reason, subject), beside them
    sort_at: str = ""  # of all of them
    # Reasons whose notifications cannot be judged: at all, and where their subject is gone.
    unclear: Set[str] = frozenset()
    unclear_without_subject: Set[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Collection:
    """One kind of record."""

    nsid: str
    read: Callable[[Put, Record], Rows]  # raises InvalidRecordError
    check: Callable[[Record], None] | None = None  # validates, see `lexicon`; set by `registry`
    table: CollectionTable | None = None
    only_rkey: str = ""  # records with other keys have no row in the table
    side: tuple[SideTable, ...] = ()
    notify: Callable[[Put], Sequence[Notification]] | None = None
    written_last: bool = (
        False  # looks at others' rows (follows, lists, gates), so it is written last
    )
    looked_at: bool = False  # records of others depend on records of this kind
    # Finds operations of a batch, by their uris, that change what its records look at beside
    # `Rows.looks_at`: uri of the record -> uris of the operations.
    looks_beyond: Callable[[Transaction, Sequence[Operation]], Mapping[str, Set[str]]] | None = None
    renotify: bool = True  # an update replaces the notifications of its record
    finish: Callable[[Changes], None] | None = (
        None  # writes the rows that a declaration cannot describe
    )
    # Returns what `finish` wrote of standing records, by uri, for whoever compares; and the tables
    # with rows of `Finished.rows`, whose `owner` is the record's uri.
    finished: Callable[[Transaction, Sequence[Put]], Mapping[str, Finished]] | None = None
    traces: tuple[SideTable, ...] = ()
    # Writes the traces that a record leaves although its deletion came first or in the same batch.
    overtaken: Callable[[Changes, Sequence[Put]], None] | None = None
    # Makes the notification of the deletion of a standing row, given the row and the time now. The
    # notifications of the record stay then; without this function they are removed.
    withdraw: Callable[[Mapping[str, Any], str], Notification] | None = None


def record_only(_put: Put, _record: Record) -> Rows:
    """Keep the `record` row and nothing else."""
    return Rows()


def looked_at_by_others(collections: Iterable[Collection]) -> frozenset[str]:
    """Return the NSIDs whose records others depend on, as `core.locks` asks for them."""
    return frozenset(collection.nsid for collection in collections if collection.looked_at)
