"""Recomputes counts from the rows that they count, beside running indexers.

A batch of keys is locked first, in the order in which batches lock them; then their rows are
counted. A batch that has written a row and not yet its count waits for the lock and adds to the new
count; one that has written both is waited for. So the result is exact at the time of its commit.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.database.isolation import retry_conflicts
from rsky_pipeline.indexer.core.counts import forget_zeros

BATCH_KEYS = 500  # of one transaction
MAX_CONFLICTS = 20
_RECORDS = f"SELECT uri FROM record WHERE did = %s AND uri > %s ORDER BY uri LIMIT {BATCH_KEYS}"

# The rows of each count: the table, the column with the key, and a condition.
_POST = {
    "likeCount": ('"like"', "subject", ""),
    "replyCount": ("post", '"replyParent"', 'AND s."violatesThreadGate" IS NOT TRUE'),
    "repostCount": ("repost", "subject", ""),
    "quoteCount": ("quote", "subject", ""),
}
_PROFILE = {
    "followersCount": ("follow", '"subjectDid"', ""),
    "followsCount": ("follow", "creator", ""),
    "postsCount": ("post", "creator", ""),
}


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A table of counts."""

    table: str
    key: str
    counts: dict[str, tuple[str, str, str]]


POST_AGG = Aggregate("post_agg", "uri", _POST)
PROFILE_AGG = Aggregate("profile_agg", "did", _PROFILE)


@dataclass(frozen=True, slots=True)
class Drift:
    """A count that differed from the number of its rows."""

    table: str
    key: str
    column: str
    stored: int
    counted: int


@dataclass(frozen=True, slots=True)
class Scope:
    """Which counts to look at; without either, all."""

    dids: tuple[str, ...] = ()  # counts of these accounts and of their records
    uris: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecountedBatch:
    """The differences among some keys."""

    table: str
    keys: int
    drifts: tuple[Drift, ...]


def recount(database: Database, scope: Scope, *, repair: bool) -> Iterator[RecountedBatch]:
    """Recount batch by batch, each in a transaction of its own. Raises DatabaseError.

    Without repair nothing is written; a count whose row is only being made may then seem to differ.
    """
    for aggregate, keys in _batches(database, scope):
        one = partial(_one, database, aggregate, keys, repair)
        yield RecountedBatch(aggregate.table, len(keys), retry_conflicts(one, MAX_CONFLICTS))


def drifts_of(database: Database, aggregate: Aggregate, keys: list[str]) -> list[Drift]:
    """Return the differences among some keys, without a lock. Raises DatabaseError."""
    found: list[Drift] = []
    for start in range(0, len(keys), BATCH_KEYS):
        with database.transaction() as tx:
            some = sorted(keys[start : start + BATCH_KEYS])
            found += _differences(tx, aggregate, some, _stored(tx, aggregate, some))
    return found


def _batches(database: Database, scope: Scope) -> Iterator[tuple[Aggregate, list[str]]]:
    for aggregate, keys in ((POST_AGG, scope.uris), (PROFILE_AGG, scope.dids)):
        ordered = sorted(set(keys))
        for start in range(0, len(ordered), BATCH_KEYS):
            yield aggregate, ordered[start : start + BATCH_KEYS]
    for did in sorted(set(scope.dids)):
        yield from ((POST_AGG, keys) for keys in _pages(database, _RECORDS, [did]))
    if not scope.uris and not scope.dids:
        for aggregate in (POST_AGG, PROFILE_AGG):
            yield from ((aggregate, keys) for keys in _all_keys(database, aggregate))


def _all_keys(database: Database, aggregate: Aggregate) -> Iterator[list[str]]:
    """Yield keys that have a row of counts or something to count, in the order of the indexes."""
    sources = {(table, column) for table, column, _ in aggregate.counts.values()}
    sources.add((aggregate.table, aggregate.key))
    parts = [
        f"(SELECT DISTINCT {column} AS key FROM {table} WHERE {column} > %s "
        f"ORDER BY 1 LIMIT {BATCH_KEYS})"
        for table, column in sorted(sources)
    ]
    sql = f"SELECT key FROM ({' UNION '.join(parts)}) u ORDER BY key LIMIT {BATCH_KEYS}"
    yield from _pages(database, sql, [], repeated=len(parts))


def _pages(
    database: Database, sql: str, parameters: list[str], repeated: int = 1
) -> Iterator[list[str]]:
    """Yield pages of keys; the last key of a page is the last parameters of the next query."""
    after = ""
    while rows := database.query(sql, [*parameters, *[after] * repeated]):
        after = rows[-1][0]
        yield [row[0] for row in rows]


def _one(
    database: Database, aggregate: Aggregate, keys: list[str], repair: bool
) -> tuple[Drift, ...]:
    with database.transaction() as tx:
        return _recount(tx, aggregate, keys, repair=repair)


def recount_in(tx: Transaction, touched: Mapping[str, Iterable[str]]) -> None:
    """Recount keys, by table, at the end of a transaction that has written rows of theirs."""
    for aggregate in (POST_AGG, PROFILE_AGG):
        if keys := list(touched.get(aggregate.table, ())):
            _recount(tx, aggregate, keys, repair=True)


def _recount(
    tx: Transaction, aggregate: Aggregate, keys: list[str], *, repair: bool
) -> tuple[Drift, ...]:
    keys = sorted(keys)
    drifts = _differences(tx, aggregate, keys, _lock(tx, aggregate, keys, make=repair))
    if repair:
        _repair(tx, aggregate, drifts)
        forget_zeros(tx, aggregate.table, keys)
    return tuple(drifts)


def _differences(
    tx: Transaction, aggregate: Aggregate, keys: list[str], stored: Mapping[str, tuple[int, ...]]
) -> list[Drift]:
    drifts: list[Drift] = []
    for place, column in enumerate(aggregate.counts):
        counted = _count(tx, aggregate.counts[column], keys)
        for key in keys:
            was, is_ = stored[key][place], counted.get(key, 0)
            if was != is_:
                drifts.append(Drift(aggregate.table, key, column, was, is_))
    return drifts


def _lock(
    tx: Transaction, aggregate: Aggregate, keys: list[str], *, make: bool
) -> dict[str, tuple[int, ...]]:
    """Make the rows that are missing if asked to, lock all, and return their counts by key."""
    if make:
        tx.execute(
            f"INSERT INTO {aggregate.table} ({aggregate.key}) SELECT * FROM unnest(%b::text[]) "
            "ON CONFLICT DO NOTHING",
            (keys,),
        )
    return _stored(tx, aggregate, keys, "FOR UPDATE")


def _stored(
    tx: Transaction, aggregate: Aggregate, keys: list[str], lock: str = ""
) -> dict[str, tuple[int, ...]]:
    key = aggregate.key
    columns = ", ".join(f'"{column}"' for column in aggregate.counts)
    rows = tx.query(
        f"SELECT {key}, {columns} FROM {aggregate.table} WHERE {key} = ANY(%b::text[]) "
        f'ORDER BY {key} COLLATE "C" {lock}',
        (keys,),
    )
    none = dict.fromkeys(keys, (0,) * len(aggregate.counts))
    return none | {row[0]: row[1:] for row in rows}


def _count(tx: Transaction, source: tuple[str, str, str], keys: list[str]) -> dict[str, int]:
    table, column, condition = source
    return dict(
        tx.query(
            f"SELECT s.{column}, count(*) FROM {table} s "
            f"WHERE s.{column} = ANY(%b::text[]) {condition} GROUP BY 1",
            (keys,),
        )
    )


def _repair(tx: Transaction, aggregate: Aggregate, drifts: list[Drift]) -> None:
    for column in aggregate.counts:
        rows = [(drift.key, drift.counted) for drift in drifts if drift.column == column]
        if rows:
            tx.execute(
                f'UPDATE {aggregate.table} a SET "{column}" = n.counted '
                "FROM unnest(%b::text[], %b::bigint[]) AS n(key, counted) "
                f"WHERE a.{aggregate.key} = n.key",
                [list(values) for values in zip(*rows, strict=True)],
            )
