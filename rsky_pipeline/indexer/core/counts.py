"""Exact counts: the differences of a batch are summed per key and added in one statement a table.

A count changes by exactly the rows that were really inserted or deleted, and never by
intended ones. That is why applying a batch twice changes nothing: the second time, nothing is
inserted. There are no rows of zeros, which a like that comes and goes would leave if it did so in
two batches, and not in one. It also costs the same for a post with a million likes as for one with
none. Counts are written near the end of the transaction, after the rows of all collections, since
those of popular posts are the ones that workers wait for most.
"""

from collections import defaultdict

from rsky_pipeline.database.connection import Transaction

TABLES = {
    "post_agg": ("uri", ("likeCount", "replyCount", "repostCount", "quoteCount")),
    "profile_agg": ("did", ("followersCount", "followsCount", "postsCount")),
}


class Counts:
    """The differences of one batch."""

    def __init__(self) -> None:
        self._deltas: dict[tuple[str, str], dict[str, int]] = {
            (table, column): defaultdict(int)
            for table, (_, columns) in TABLES.items()
            for column in columns
        }

    def add(self, table: str, column: str, key: str | None, difference: int) -> None:
        """Note a difference; nothing happens without a key (a post that is no reply)."""
        if key is not None:
            self._deltas[table, column][key] += difference

    def write(self, tx: Transaction) -> None:
        """Add the differences, tables and keys in the same order in every worker: no deadlocks."""
        for table, (_, columns) in TABLES.items():
            deltas = [self._deltas[table, column] for column in columns]
            keys = sorted({key for delta in deltas for key, value in delta.items() if value})
            if keys:
                values = [[delta.get(key, 0) for key in keys] for delta in deltas]
                tx.execute(_UPSERTS[table], [keys, *values])
            falling = sorted({key for delta in deltas for key, value in delta.items() if value < 0})
            if falling:
                forget_zeros(tx, table, falling)

    def touched(self) -> dict[str, set[str]]:
        """Return by table the keys that any difference was noted for."""
        found: dict[str, set[str]] = {}
        for (table, _), delta in self._deltas.items():
            found.setdefault(table, set()).update(key for key, value in delta.items() if value)
        return found


def forget_zeros(tx: Transaction, table: str, keys: list[str]) -> None:
    """Remove rows that count nothing; `keys` ascend, and the caller holds their locks."""
    tx.execute(_FORGETS[table], (keys,))


def _upsert_sql(table: str) -> str:
    key, columns = TABLES[table]
    names = ", ".join(f'"{column}"' for column in columns)
    # A missing row has counted nothing that it could lose: it starts at 0, not below.
    values = ", ".join(
        f'CASE WHEN n."{column}" >= 0 OR EXISTS (SELECT FROM {table} t WHERE t.{key} = n.{key}) '
        f'THEN n."{column}" ELSE 0 END'
        for column in columns
    )
    changes = ", ".join(
        f'"{column}" = GREATEST(0, {table}."{column}" + EXCLUDED."{column}")' for column in columns
    )
    arrays = ", ".join("%b::bigint[]" for _ in columns)
    return (
        f"INSERT INTO {table} ({key}, {names}) SELECT n.{key}, {values} "
        f"FROM unnest(%b::text[], {arrays}) AS n({key}, {names}) "
        f"ON CONFLICT ({key}) DO UPDATE SET {changes}"
    )


def _forget_sql(table: str) -> str:
    key, columns = TABLES[table]
    nothing = " AND ".join(f'"{column}" <= 0' for column in columns)
    # Bookmarks are counted by the AppView itself, if it has them.
    nothing += f" AND COALESCE((to_jsonb({table}) ->> 'bookmarkCount')::bigint, 0) <= 0"
    return f"DELETE FROM {table} WHERE {key} = ANY(%b::text[]) AND {nothing}"


_UPSERTS = {table: _upsert_sql(table) for table in TABLES}
_FORGETS = {table: _forget_sql(table) for table in TABLES}
