"""The first load into empty tables: rows first, then counts and most indexes, at once.

A count is added to for each row, and an index that ascends by time or text is touched at another
page for each: together a third of the cost of PostgreSQL, and most of it once the indexes do not
fit in memory. Counted and built from all rows, they cost a fifth of that.

What is postponed stands in `rsky_pipeline.load_postponed` from the transaction on in which the
indexes go, until the one in which they are back: a load that is killed leaves it there, the next
one continues in the same way, and `db check` misses the indexes meanwhile. Unique indexes stay, and
so do those by which a load or an indexer finds rows: an indexer beside the load writes as always.
Its counts are overwritten by true ones in the end, under a lock that waits for its transactions.
"""

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.core.counts import TABLES
from rsky_pipeline.operations.load.pool import LoadStoppedError
from rsky_pipeline.operations.recount import POST_AGG, PROFILE_AGG, Aggregate

# Indexes that only an AppView reads, and purges of accounts.
_LATE = (
    "actor_block_subjectdid_idx", "feed_item_cursor_idx", "feed_item_originator_cursor_idx",
    "follow_creator_cursor_idx", "follow_subject_cursor_idx", "like_creator_cursor_idx",
    "list_item_creator_idx", "list_item_subject_idx", "post_creator_cursor_idx",
    "post_order_by_idx", "profile_display_name_tgrm_idx", "repost_order_by_idx",
    "repost_subject_idx",
)  # fmt: skip
_COUNTS = "counts"  # the name of what stands for the counts among the postponed
_LOCK = 0x6C6F6164  # "load": of the one load at a time that postpones
_ONLY_ONE = "SELECT pg_try_advisory_lock(%s)"
_PENDING = "SELECT name, definition FROM rsky_pipeline.load_postponed ORDER BY name"
_NOTE = "INSERT INTO rsky_pipeline.load_postponed (name, definition) VALUES (%s, %s)"
_FORGET = "DELETE FROM rsky_pipeline.load_postponed WHERE name = %s"
_EMPTY = "SELECT NOT EXISTS (SELECT FROM record) AND NOT EXISTS (SELECT FROM {})"
_INDEXES = """
SELECT format('%%I.%%I', n.nspname, c.relname), pg_get_indexdef(i.indexrelid),
    pg_has_role(t.relowner, 'USAGE')
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = ANY(%s) AND NOT i.indisunique ORDER BY c.relname
"""


def postpone(database: Database) -> bool:
    """Begin a first load, or go on with one; return whether counts and indexes are postponed.

    They are where all tables are empty and ours to change, and where a load was interrupted that
    had postponed them. The connection has to stay open until `finish`, unless it is a pooler's: a
    second load at the same time could end first. Raises DatabaseError and LoadStoppedError.
    """
    if database.pooled:
        return _is_pending(database)
    if not database.query(_ONLY_ONE, [_LOCK])[0][0]:
        if _is_pending(database):
            raise LoadStoppedError("another load fills this database")
        return False
    if _is_pending(database):
        return True
    with database.transaction() as tx:
        if not all(tx.query(_EMPTY.format(table))[0][0] for table in TABLES):
            return False
        found = tx.query(_INDEXES, [database.schema, list(_LATE)])
        if not found or not all(is_ours for _, _, is_ours in found):
            return False
        tx.execute(_NOTE, [_COUNTS, ""])
        for name, definition, _ in found:
            tx.execute(_NOTE, [name, definition])
            tx.execute(f"DROP INDEX {name}")
    return True


def finish(database: Database) -> None:
    """Count all rows, then build the indexes one by one. Raises DatabaseError.

    Indexers beside it wait meanwhile. Safe to repeat, and to interrupt: the counts are noted as
    done when the last index is there, so that `db check` misses one as long as counts are missing.
    """
    for aggregate in (POST_AGG, PROFILE_AGG):
        with database.transaction() as tx:
            _count_all(tx, aggregate)
    for name, definition in database.query(_PENDING):
        if name != _COUNTS:
            with database.transaction() as tx:
                # An operator may have made one, as `db check` advises.
                tx.execute(definition.replace("INDEX", "INDEX IF NOT EXISTS", 1))
                tx.execute(_FORGET, [name])
    with database.transaction() as tx:
        tx.execute(_FORGET, [_COUNTS])


def _is_pending(database: Database) -> bool:
    return bool(database.query(_PENDING))


def _count_all(tx: Transaction, aggregate: Aggregate) -> None:
    """Write the counts of all keys that have rows.

    Under the lock nobody is between rows and their counts but those who wait for it, and add
    theirs, whose rows are not visible yet, afterwards. A key without rows has no counts: whoever
    took its last row has removed them.
    """
    tx.execute(f"LOCK TABLE {aggregate.table} IN SHARE ROW EXCLUSIVE MODE")
    columns = list(aggregate.counts)
    parts = [
        f"SELECT {source} AS key, "
        + ", ".join(f"{int(column == other)} AS n{place}" for place, other in enumerate(columns))
        + f" FROM {table} s WHERE {source} IS NOT NULL {condition}"
        for column, (table, source, condition) in aggregate.counts.items()
    ]
    names = ", ".join(f'"{column}"' for column in columns)
    sums = ", ".join(f"sum(n{place})" for place in range(len(columns)))
    changes = ", ".join(f'"{column}" = EXCLUDED."{column}"' for column in columns)
    tx.execute(
        f"INSERT INTO {aggregate.table} ({aggregate.key}, {names}) "
        f"SELECT key, {sums} FROM ({' UNION ALL '.join(parts)}) rows GROUP BY key "
        f"ON CONFLICT ({aggregate.key}) DO UPDATE SET {changes}"
    )
