"""The rows of two databases, table by table."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

Row = dict[str, Any]
# Tables that bsync fills, and their columns that have the time of whoever wrote the row.
PRIVATE = {
    "mute": ("createdAt",), "list_mute": ("createdAt",), "thread_mute": ("createdAt",),
    "bookmark": ("indexedAt",), "draft": ("createdAt", "updatedAt"),
    "activity_subscription": ("indexedAt",), "private_data": ("indexedAt", "updatedAt"),
    "actor_state": ("lastSeenNotifs", "lastSeenPriorityNotifs"),
}  # fmt: skip
# Columns of ours, and what differs by nature: numbers and the indexer's clock.
OWN_COLUMNS = {"record": ("rev",)}
MASKED = {**PRIVATE, "notification": ("id",), "op_thread_reply": ("deletedAt",)}
NOT_COMPARED = frozenset({
    "algo_whats_hot_view",  # nobody refreshes it
    "label",  # no official program fills it
    "kysely_migration", "kysely_migration_lock", "view_param",  # of the migrations
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class TableDifference:
    """A table: how many rows each has, and those that the other lacks."""

    name: str
    official: int
    ours: int
    missing: list[Row]  # official rows that are not ours
    extra: list[Row]


def read(url: str, schema: str) -> dict[str, list[Row]]:
    """Return all rows of all tables of a schema."""
    names = """
        SELECT table_name FROM information_schema.tables
        WHERE table_schema = %s AND table_type = 'BASE TABLE'"""
    with psycopg.connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        tables = sorted(row[0] for row in connection.execute(names, [schema]))
        found = {}
        for table in tables:
            query = sql.SQL("SELECT row_to_json(t) FROM {} t").format(sql.Identifier(schema, table))
            found[table] = [row[0] for row in connection.execute(query)]
        return found


def differences(
    official: Mapping[str, list[Row]],
    ours: Mapping[str, list[Row]],
    leave_out: tuple[str, ...] = (),
) -> Iterator[TableDifference]:
    """Compare every official table, without some columns."""
    for table in sorted(official.keys() - NOT_COMPARED):
        left, right = official[table], ours.get(table, [])
        hidden = (*MASKED.get(table, ()), *leave_out)
        first = Counter(_shown(row, hidden) for row in left)
        second = Counter(_shown(row, (*hidden, *OWN_COLUMNS.get(table, ()))) for row in right)
        yield TableDifference(
            table, len(left), len(right),
            [json.loads(text) for text in (first - second).elements()],
            [json.loads(text) for text in (second - first).elements()],
        )  # fmt: skip


def _shown(row: Row, without: tuple[str, ...]) -> str:
    kept = {name: value for name, value in row.items() if name not in without}
    if "deletedAt" in row:  # a mask that keeps whether there is a value
        kept["deletedAt"] = row["deletedAt"] is not None
    if "json" in kept:
        kept["json"] = json.loads(kept["json"])
    return json.dumps(kept, sort_keys=True)
