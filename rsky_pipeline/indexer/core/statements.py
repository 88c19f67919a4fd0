"""SQL for the tables of collections, made from their declarations.

One array parameter a column (`%b`, binary) makes one prepared statement serve any batch size.
Rows are sorted by uri, so that two workers touch shared index pages and rows in one order.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cache
from typing import Any

import orjson

from rsky_pipeline.database.bulk import quoted, transpose
from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.indexer.collections.values import CollectionTable, Put, SideTable, StoredRow

LIST = "varchar[]"  # of a column that is officially jsonb
# How a text parameter becomes a value of the type, which its column needs.
_CASTS = {
    "jsonb": 'n."{}"::jsonb',
    LIST: 'CASE WHEN n."{0}" IS NOT NULL '
    'THEN ARRAY(SELECT jsonb_array_elements_text(n."{0}"::jsonb)) END',
}
_NO_ARRAYS: frozenset[str] = frozenset()
GENERIC = {"uri": "varchar", "cid": "varchar", "creator": "varchar", "indexedAt": "varchar"}
_POST = "app.bsky.feed.post"


def insert(
    tx: Transaction, table: CollectionTable, puts: Sequence[Put], empty: Set[str] = frozenset()
) -> list[tuple[Any, ...]]:
    """Write rows, sorted by uri; return (uri, whether it is new) of each row written.

    A row of a table with a natural key is left out when another record stands for its key. `empty`
    are accounts that have nothing yet: where all rows are theirs, nothing can be in the way, and
    they are copied in. Raises RowExistsError where something is (see `write_records`).
    """
    if not puts:
        return []
    rows = sorted(
        (put.uri, put.cid, put.did, put.indexed_at, *(put.rows.main or ())) for put in puts
    )
    its_own = not table.unique or "creator" in table.unique
    arrays = tx.forms.arrays.get(table.name, _NO_ARRAYS)
    if its_own and empty and all(put.did in empty for put in puts):
        kinds = GENERIC | _adapted(table.columns, arrays)
        given = [_with_lists(row, kinds.values()) for row in rows] if arrays else rows
        tx.copy_in(_copy_sql(table), list(kinds.values()), given)
        return [(row[0], True) for row in rows]
    return tx.query(_insert_sql(table, arrays), transpose(rows))


@cache
def returned_columns(table: CollectionTable) -> tuple[str, ...]:
    """Return the columns that are asked for when a row is deleted."""
    by = (count.by for count in table.counts)
    return tuple(dict.fromkeys(("uri", "cid", "indexedAt", *table.unique, *by, *table.kept)))


def delete(tx: Transaction, table: CollectionTable, uris: Iterable[str]) -> list[StoredRow]:
    """Delete rows by uri; return their `returned_columns`."""
    uris = sorted(uris)
    if not uris:
        return []
    columns = returned_columns(table)
    sql = f'DELETE FROM "{table.name}" WHERE uri = ANY(%b::text[]) RETURNING {quoted(columns)}'
    return [dict(zip(columns, row, strict=True)) for row in tx.query(sql, (uris,))]


def select(tx: Transaction, table: CollectionTable, uris: list[str]) -> list[StoredRow]:
    """Return rows by uri."""
    if not uris:
        return []
    columns = returned_columns(table)
    sql = f'SELECT {quoted(columns)} FROM "{table.name}" WHERE uri = ANY(%b::text[])'
    return [dict(zip(columns, row, strict=True)) for row in tx.query(sql, (uris,))]


@cache
def _copy_sql(table: CollectionTable) -> str:
    columns = quoted({**GENERIC, **table.columns})
    return f'COPY "{table.name}" ({columns}) FROM STDIN (FORMAT BINARY)'


@cache
def _insert_sql(table: CollectionTable, arrays: frozenset[str]) -> str:
    columns = GENERIC | _adapted(table.columns, arrays)
    if table.unique:
        conflict = "ON CONFLICT DO NOTHING"
    else:
        changed = ", ".join(f'"{name}" = EXCLUDED."{name}"' for name in columns if name != "uri")
        conflict = f"ON CONFLICT (uri) DO UPDATE SET {changed}"
    return (
        f'INSERT INTO "{table.name}" ({quoted(columns)}) {unnest(columns)} '
        f"{conflict} RETURNING uri, xmax = 0"
    )


@cache
def side_rows_sql(side: SideTable) -> str:
    """Return the query for the rows of a side table that are to be written, of given ones."""
    columns = {side.owner: "varchar", **side.columns}
    skip = ""
    if side.skip_deleted:
        # Only the deletion of a post takes rows along that point at it; a repost can be of a feed.
        skip = (
            " WHERE NOT EXISTS (SELECT FROM rsky_pipeline.tombstone t "
            f"WHERE t.uri = n.\"{side.skip_deleted}\" AND split_part(t.uri, '/', 4) = '{_POST}' "
            "AND t.rev <> '')"
        )
    return f"{unnest(columns)}{skip}"


@cache
def side_insert_sql(side: SideTable) -> str:
    """Return the statement that writes rows of a side table and returns their count keys."""
    columns = (side.owner, *side.columns)
    return (
        f'INSERT INTO "{side.name}" ({quoted(columns)}) {side_rows_sql(side)} '
        f"ON CONFLICT DO NOTHING RETURNING {_count_keys(side)}"
    )


@cache
def side_delete_sql(side: SideTable) -> str:
    """Return the statement that deletes rows by owner and returns their count keys."""
    return (
        f'DELETE FROM "{side.name}" WHERE "{side.owner}" = ANY(%b::text[]) '
        f"RETURNING {_count_keys(side)}"
    )


def _count_keys(side: SideTable) -> str:
    return quoted(count.by for count in side.counts) or "NULL"


def unnest(columns: Mapping[str, str]) -> str:
    """Return a SELECT from one array parameter a column, as relation `n`."""
    arrays = ", ".join(f"%b::{_array_type(kind)}[]" for kind in columns.values())
    chosen = ", ".join(_CASTS.get(kind, 'n."{}"').format(name) for name, kind in columns.items())
    return f"SELECT {chosen} FROM unnest({arrays}) AS n({quoted(columns)})"


def _array_type(kind: str) -> str:
    return "text" if kind == "varchar" or kind in _CASTS else kind


def _adapted(columns: Mapping[str, str], arrays: Set[str]) -> dict[str, str]:
    """Return the types of columns in a database where some hold arrays in place of JSON lists."""
    return {name: LIST if name in arrays else kind for name, kind in columns.items()}


def _with_lists(row: Sequence[Any], kinds: Iterable[str]) -> tuple[Any, ...]:
    """Return a row with lists in place of their JSON: COPY takes values of the column's type."""
    return tuple(
        orjson.loads(value) if kind == LIST and value is not None else value
        for value, kind in zip(row, kinds, strict=True)
    )
