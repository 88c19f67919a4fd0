"""Natural keys: of several records that say the same, one stands and the others wait.

The live record with the smallest uri (the oldest, as record keys are clocks) has the row; the
others are in `duplicate_record`, all pointing at it. When it goes, the next one is promoted. This
does not depend on the order of arrival; officially the first to arrive stands.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any

import orjson

from rsky_pipeline.database.bulk import quoted, transpose
from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.fields import InvalidRecordError
from rsky_pipeline.indexer.collections.notifications import BatchNotifications
from rsky_pipeline.indexer.collections.values import CollectionTable, Put, StoredRow
from rsky_pipeline.indexer.core.statements import (
    delete,
    insert,
    returned_columns,
)

Key = tuple[Any, ...]
_uri_of = attrgetter("uri")

_FORGET = "DELETE FROM duplicate_record WHERE uri = ANY(%b::text[])"
_TAKE = """
DELETE FROM duplicate_record d USING record r
WHERE d."duplicateOf" = ANY(%b::text[]) AND r.uri = d.uri
RETURNING d.uri, d.cid, d."indexedAt", r.did, COALESCE(r.rev, ''), r.json
"""
_PARK = """
INSERT INTO duplicate_record (uri, cid, "duplicateOf", "indexedAt")
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[])
ON CONFLICT (uri) DO UPDATE
SET cid = EXCLUDED.cid, "duplicateOf" = EXCLUDED."duplicateOf", "indexedAt" = EXCLUDED."indexedAt"
"""
_REPOINT = """
UPDATE duplicate_record d SET "duplicateOf" = n.standing
FROM unnest(%b::text[], %b::text[]) AS n(previous, standing) WHERE d."duplicateOf" = n.previous
"""


def forget_duplicates(tx: Transaction, uris: list[str]) -> None:
    """Remove records that are deleted or changed from the waiting ones."""
    if uris:
        tx.execute(_FORGET, (uris,))


@cache
def _key_places(table: CollectionTable) -> tuple[int, ...]:
    """Return where in `Rows.main` the values of a key stand; the creator is not among them."""
    columns = list(table.columns)
    return tuple(-1 if name == "creator" else columns.index(name) for name in table.unique)


@dataclass(frozen=True, slots=True)
class NaturalKey:
    """The natural key of a collection's table."""

    tx: Transaction
    collection: Collection
    table: CollectionTable
    empty: Set[str] = frozenset()  # accounts that have nothing yet

    def of(self, put: Put) -> Key:
        """Return the key of a record."""
        main = put.rows.main or ()
        return tuple([put.did if place < 0 else main[place] for place in _key_places(self.table)])

    def of_row(self, row: StoredRow) -> Key:
        """Return the key of a row."""
        return tuple(row[name] for name in self.table.unique)

    def standing(self, keys: Sequence[Key]) -> dict[Key, StoredRow]:
        """Return the rows that stand for these keys."""
        returned = returned_columns(self.table)
        names = ", ".join(f't."{name}"' for name in returned)
        arrays = ", ".join("%b::text[]" for _ in self.table.unique)
        match = " AND ".join(f't."{name}" = n."{name}"' for name in self.table.unique)
        sql = (
            f"SELECT {names} FROM unnest({arrays}) AS n({quoted(self.table.unique)}) "
            f'JOIN "{self.table.name}" t ON {match}'
        )
        rows = [
            dict(zip(returned, row, strict=True)) for row in self.tx.query(sql, transpose(keys))
        ]
        return {self.of_row(row): row for row in rows}

    def take_waiting(self, gone: Sequence[StoredRow], known: Iterable[Put]) -> list[Put]:
        """Take the records out of `duplicate_record` that waited for rows, but for `known` ones."""
        if not gone:
            return []
        seen = {put.uri for put in known}
        found: list[Put] = []
        for uri, cid, indexed_at, did, rev, json in self.tx.query(
            _TAKE, ([row["uri"] for row in gone],)
        ):
            put = Put(
                uri, did, uri.rpartition("/")[2], cid, rev, indexed_at, historical=True, json=json
            )
            try:
                put.rows = self.collection.read(put, orjson.loads(json))
            except (InvalidRecordError, orjson.JSONDecodeError):
                continue  # another indexer let it in; it cannot stand here
            if put.rows.main is not None and uri not in seen:
                found.append(put)
        return found


def resolve_duplicates(
    key: NaturalKey,
    gone: Sequence[StoredRow],
    puts: Sequence[Put],
    notifications: BatchNotifications,
    arrivals: Mapping[str, int],
) -> tuple[list[Put], list[StoredRow]]:
    """Insert the record that stands for each key and park the others; `gone` is deleted already.

    Returns the records inserted and the rows that they displaced.

    Nearly always one insertion is all. Where it leaves something out, the rows of the very records
    that were left out go first: only a writer without our rules leaves them (a row whose record is
    missing). Compared like rows of other records, such a row would be displaced and parked while
    its record is parked too, and one whose record has another key now would go on standing.
    """
    contest = [*puts, *key.take_waiting(gone, puts)]
    if not contest:
        return [], []
    oldest = _oldest(key, contest)
    written = {row[0] for row in insert(key.tx, key.table, list(oldest.values()), key.empty)}
    standing = {its_key: put.uri for its_key, put in oldest.items() if put.uri in written}
    displaced: list[StoredRow] = []
    if len(written) < len(contest):
        rest = [put for put in contest if put.uri not in written]
        displaced = delete(key.tx, key.table, {put.uri for put in rest})
        rest += key.take_waiting(displaced, contest)
        oldest |= _oldest(key, [put for put in rest if key.of(put) not in standing])
        weaker = _challenge(key, oldest, standing)
        displaced += weaker
        _park(key, rest, weaker, standing)
        oldest = dict(sorted(oldest.items(), key=lambda item: item[1].uri))
    for row in (*gone, *displaced):
        successor = standing.get(key.of_row(row))
        if successor is not None and successor != row["uri"]:
            # A record that was there when the other one went had waited for it.
            waited = arrivals.get(successor, -1) < arrivals.get(row["uri"], -1)
            notifications.replace(successor, row["uri"], inherits=waited)
    return [put for its_key, put in oldest.items() if standing[its_key] == put.uri], displaced


def _oldest(key: NaturalKey, puts: Iterable[Put]) -> dict[Key, Put]:
    """Return the record with the smallest uri of each key."""
    found: dict[Key, Put] = {}
    for put in sorted(puts, key=_uri_of):
        found.setdefault(key.of(put), put)
    return found


def _challenge(
    key: NaturalKey, oldest: Mapping[Key, Put], standing: dict[Key, str]
) -> list[StoredRow]:
    """Let records that do not stand yet displace rows of greater uris; return these rows.

    The others lose to the row that is there. `standing` gets whoever stands of each key.
    """
    challengers = {its_key: put for its_key, put in oldest.items() if its_key not in standing}
    if not challengers:
        return []
    rows = key.standing(list(challengers))
    stronger: list[Put] = []
    for its_key, put in challengers.items():
        row = rows.get(its_key)
        if row is not None and row["uri"] < put.uri:
            standing[its_key] = row["uri"]
        else:
            stronger.append(put)
            standing[its_key] = put.uri
    weaker = [rows[its_key]["uri"] for its_key in map(key.of, stronger) if its_key in rows]
    displaced = delete(key.tx, key.table, weaker)
    insert(key.tx, key.table, stronger)
    if displaced:
        successors = [standing[key.of_row(row)] for row in displaced]
        key.tx.execute(_REPOINT, ([row["uri"] for row in displaced], successors))
    return displaced


def _park(
    key: NaturalKey, puts: Sequence[Put], rows: Sequence[StoredRow], standing: Mapping[Key, str]
) -> None:
    """Have the records wait that do not stand, and those whose rows were displaced."""
    waiting = [
        (row["uri"], row["cid"], standing[key.of_row(row)], row["indexedAt"]) for row in rows
    ]
    for put in puts:
        stands = standing[key.of(put)]
        if stands != put.uri:
            waiting.append((put.uri, put.cid, stands, put.indexed_at))
    if waiting:
        key.tx.execute(_PARK, transpose(sorted(waiting)))
