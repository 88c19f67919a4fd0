"""Natural keys: of several records that say the same, one stands and the others wait.

The live record with the smallest uri (the oldest, as record keys are clocks) has the row; the
others are in `duplicate_record`, all pointing at it. When it goes, the next one is promoted. This
does not depend on the order of arrival; officially the first to arrive stands.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from typing import Any

import orjson

from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.indexer.collections.shape import Collection, Put, Table
from rsky_pipeline.indexer.notifications import Notes
from rsky_pipeline.indexer.records import InvalidRecord
from rsky_pipeline.indexer.statements import (
    StoredRow,
    delete,
    insert,
    quoted,
    returned_columns,
    transpose,
)

Key = tuple[Any, ...]

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
def _key_places(table: Table) -> tuple[int, ...]:
    """Return where in `Rows.main` the values of a key stand; the creator is not among them."""
    columns = list(table.columns)
    return tuple(-1 if name == "creator" else columns.index(name) for name in table.unique)


@dataclass(frozen=True, slots=True)
class NaturalKey:
    """The natural key of a collection's table."""

    tx: Transaction
    collection: Collection
    table: Table
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

    def take_waiting(self, uris: Sequence[str]) -> list[Put]:
        """Take the records out of `duplicate_record` that waited for these."""
        found: list[Put] = []
        for uri, cid, indexed_at, did, rev, json in self.tx.query(_TAKE, (list(uris),)):
            put = Put(
                uri, did, uri.rpartition("/")[2], cid, rev, indexed_at, historical=True, json=json
            )
            try:
                put.rows = self.collection.read(put, orjson.loads(json))
            except (InvalidRecord, orjson.JSONDecodeError):
                continue  # another indexer let it in; it cannot stand here
            if put.rows.main is not None:
                found.append(put)
        return found


def settle(
    key: NaturalKey,
    gone: Sequence[StoredRow],
    puts: Sequence[Put],
    notes: Notes,
    arrivals: Mapping[str, int],
) -> tuple[list[Put], list[StoredRow]]:
    """Insert the records that stand now and park the others, given the rows already deleted.

    Returns the records inserted and the rows that they displaced.
    """
    candidates = list(puts)
    if gone:
        candidates += key.take_waiting([row["uri"] for row in gone])
    if not candidates:
        return [], []
    winners: dict[Key, Put] = {}
    waiting: list[tuple[Put | StoredRow, Key]] = []
    for put in sorted(candidates, key=lambda put: put.uri):
        its_key = key.of(put)
        if winners.setdefault(its_key, put) is not put:
            waiting.append((put, its_key))
    written = {row[0] for row in insert(key.tx, key.table, list(winners.values()), key.empty)}
    standing = {its_key: put.uri for its_key, put in winners.items()}
    displaced: list[StoredRow] = []
    blocked = {its_key: put for its_key, put in winners.items() if put.uri not in written}
    if blocked:
        displaced = _challenge(key, blocked, standing, waiting)
    inserted = [put for its_key, put in winners.items() if standing[its_key] == put.uri]
    for row in (*gone, *displaced):
        successor = standing.get(key.of_row(row))
        if successor is not None and successor != row["uri"]:
            # A record that was there when the other one went had waited for it.
            waited = arrivals.get(successor, -1) < arrivals.get(row["uri"], -1)
            notes.succeed(successor, row["uri"], inherits=waited)
    _park(key.tx, waiting, standing)
    return inserted, displaced


def _challenge(
    key: NaturalKey,
    blocked: dict[Key, Put],
    standing: dict[Key, str],
    waiting: list[tuple[Put | StoredRow, Key]],
) -> list[StoredRow]:
    """Let candidates displace rows of greater uris; the others wait for the row that stands."""
    rows = key.standing(list(blocked))
    stronger: list[Put] = []
    for its_key, put in blocked.items():
        row = rows.get(its_key)
        if row is not None and row["uri"] < put.uri:
            standing[its_key] = row["uri"]
            waiting.append((put, its_key))
        else:
            stronger.append(put)
    if not stronger:
        return []
    weaker = [rows[its_key]["uri"] for its_key in map(key.of, stronger) if its_key in rows]
    # A row of the candidate's own uri can only be left by a writer without our rules: replace it.
    displaced = delete(key.tx, key.table, {*weaker, *(put.uri for put in stronger)})
    insert(key.tx, key.table, stronger)
    for row in displaced:
        its_key = key.of_row(row)
        if standing.get(its_key, row["uri"]) != row["uri"]:
            waiting.append((row, its_key))
    previous = [row["uri"] for row in displaced]
    now = [standing.get(key.of_row(row), row["uri"]) for row in displaced]
    key.tx.execute(_REPOINT, (previous, now))
    return displaced


def _park(
    tx: Transaction, waiting: Sequence[tuple[Put | StoredRow, Key]], standing: dict[Key, str]
) -> None:
    if not waiting:
        return
    rows = [
        (item.uri, item.cid, standing[key], item.indexed_at)
        if isinstance(item, Put)
        else (item["uri"], item["cid"], standing[key], item["indexedAt"])
        for item, key in waiting
    ]
    tx.execute(_PARK, transpose(sorted(rows)))
