"""The declarative shape of a collection: which rows a record becomes, and what follows from them.

A collection is one `Collection` value in a module of this package; `registry` finds it. Everything
generic (rev gate, duplicates, updates, deletes, counts, notifications) is done from this
declaration by `indexer.write`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from rsky_pipeline.indexer.records import Record

if TYPE_CHECKING:
    from rsky_pipeline.indexer.write import Changes

Row = tuple[Any, ...]  # column values of one row: text, number, boolean or None


@dataclass(frozen=True, slots=True)
class Count:
    """An exact count of rows: `table.column` holds how many rows have the key in column `by`."""

    table: str  # post_agg (key: uri) or profile_agg (key: did)
    column: str
    by: str


@dataclass(frozen=True, slots=True)
class Table:
    """The table of a collection. Beside `columns` each has uri, cid, creator and indexedAt."""

    name: str
    columns: Mapping[str, str]  # name to SQL type, in the order of `Rows.main`
    unique: tuple[str, ...] = ()  # natural key: of several records the smallest uri stands
    counts: tuple[Count, ...] = ()
    kept: tuple[str, ...] = ()  # further columns that `finish` wants to see of rows that go

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True, slots=True)
class SideTable:
    """A further table with rows of its own for each record, replaced as a whole on update."""

    name: str
    owner: str  # column that holds the record's uri
    columns: Mapping[str, str]  # name to SQL type, without the owner
    counts: tuple[Count, ...] = ()
    # Rows that point at a deleted post are not written, so that it does not matter whether the
    # pointing record or the deletion came first.
    skip_deleted: str = ""

    def __hash__(self) -> int:
        return hash((self.name, self.skip_deleted))


class Rows(NamedTuple):  # one a record: a tuple is made three times faster than a frozen dataclass
    """What a record becomes. `main` is None when only the `record` row is kept."""

    main: Row | None = None
    side: Mapping[str, Sequence[Row]] = MappingProxyType({})
    facts: Any = None  # what a `finish` function wants to know of the record
    looks_at: tuple[str, ...] = ()  # uris whose records decide what becomes of this one
    leaves_trace: bool = False  # on other records, even if it is deleted at once


_NO_ROWS = Rows()


@dataclass(frozen=True, slots=True)
class Notification:
    """A row of the recipient's notification list; the author is the record's."""

    did: str
    reason: str
    reason_subject: str | None
    sort_at: str


@dataclass(slots=True)
class Put:
    """A state of a record that wants to be stored."""

    uri: str
    did: str
    rkey: str
    cid: str
    rev: str
    indexed_at: str
    historical: bool
    json: str
    rows: Rows = _NO_ROWS
    first: "Put | None" = None  # the state that came first, where a batch held several

    def sort_at(self, created_at: str) -> str:
        """Return the earlier of the time the record claims and the time we saw it."""
        return min(created_at, self.indexed_at)


@dataclass(frozen=True, slots=True)
class Collection:
    """One kind of record."""

    nsid: str
    read: Callable[[Put, Record], Rows]  # raises InvalidRecord
    check: Callable[[Record], None] | None = None  # validates, see `lexicon`; set by `registry`
    table: Table | None = None
    only_rkey: str = ""  # records with other keys have no row in the table
    side: tuple[SideTable, ...] = ()
    notify: Callable[[Put], Sequence[Notification]] | None = None
    judges: bool = False  # looks at others' rows (follows, lists, gates), so it is written last
    looked_at: bool = False  # what becomes of others' records depends on records of this kind
    renotify: bool = True  # an update replaces the notifications of its record
    finish: Callable[["Changes"], None] | None = None  # what the declaration cannot say
    # What a record leaves although its deletion came first, or in the same batch.
    overtaken: Callable[["Changes", Sequence[Put]], None] | None = None
    # What the deletion of a standing row tells, given the row and the time now. What the record
    # told before stays then; without this it is removed.
    withdraw: Callable[[Mapping[str, Any], str], Notification] | None = None


def record_only(_put: Put, _record: Record) -> Rows:
    """Keep the `record` row and nothing else."""
    return Rows()
