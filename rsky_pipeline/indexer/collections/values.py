"""The values that records become: rows of the tables of collections, and operations on records.

Pure: nothing here reads or writes. `declaration` names the function that makes them of a record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

Row = tuple[Any, ...]  # column values of one row: text, number, boolean or None
StoredRow = Mapping[str, Any]  # some columns of a row that stood


@dataclass(frozen=True, slots=True)
class Count:
    """An exact count of rows: `table.column` holds how many rows have the key in column `by`."""

    table: str  # post_agg (key: uri) or profile_agg (key: did)
    column: str
    by: str


@dataclass(frozen=True, slots=True)
class CollectionTable:
    """The table of a collection. Beside `columns` each has uri, cid, creator and indexedAt."""

    name: str
    columns: Mapping[str, str]  # name to SQL type, in the order of `Rows.main`
    unique: tuple[str, ...] = ()  # natural key: of several records the smallest uri stands
    counts: tuple[Count, ...] = ()
    kept: tuple[str, ...] = ()  # further columns of removed rows, for `finish`

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
    """The rows of a record. `main` is None when only the `record` row is kept."""

    main: Row | None = None
    side: Mapping[str, Sequence[Row]] = MappingProxyType({})
    facts: Any = None  # facts of the record for a `finish` function
    looks_at: tuple[str, ...] = ()  # uris whose records decide about the rows of this one
    leaves_trace: bool = False  # on other records, even if it is deleted at once


_NO_ROWS = Rows()


class Notification(NamedTuple):
    """A row of the recipient's notification list; the author is the record's."""

    did: str
    reason: str
    reason_subject: str | None
    sort_at: str


@dataclass(slots=True)
class Put:
    """A state of a record to store."""

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


class Delete(NamedTuple):
    """A record's deletion at a rev."""

    uri: str
    did: str
    rev: str


Operation = Put | Delete


def collection_of(uri: str) -> str:
    """Return the collection of a record's at:// uri, one that this program made itself."""
    return uri.split("/", 4)[3]
