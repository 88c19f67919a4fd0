"""Every table as it must be after the same events, in whatever order they came."""

from typing import Any

from rsky_pipeline.indexer.core.complete_revs import prune_tombstones
from tests.integration.indexer.kit import Row, Tables, any_count, did_of

_TABLES = """
SELECT table_schema, table_name FROM information_schema.tables
WHERE table_schema IN ('bsky', 'rsky_pipeline') AND table_type = 'BASE TABLE'
    AND table_name !~ '^kysely|^schema|migration'
"""
# When something was written or is due, by the clock.
_CLOCKS = frozenset({"deleted_at", "noticed_at", "requested_at", "rejected_at"})
Snapshot = dict[str, list[Row]]


def clear(tables: Tables) -> None:
    """Empty every table."""
    names = ", ".join(f'{schema}."{name}"' for schema, name in tables.database.query(_TABLES))
    tables.database.execute(f"TRUNCATE {names}")


def snapshot(tables: Tables, historic: str | None = None, *, exact: bool = False) -> Snapshot:
    """Return all rows without what depends on the clock or, by design, on the order.

    What housekeeping removes is removed first. `exact` is for events in order: only what depends on
    clocks is left out.

    `historic` is somebody of whom both live events and history came: whoever is first decides
    whether a record is news (notifications) and when it was seen (indexedAt).
    """
    while prune_tombstones(tables.database) is not None:
        pass
    found: Snapshot = {}
    for schema, name in tables.database.query(_TABLES):
        query = f'SELECT row_to_json(t) FROM {schema}."{name}" t'
        rows = (row[0] for row in tables.database.query(query))
        plain = [{key: value for key, value in row.items() if key not in _CLOCKS} for row in rows]
        rules = _CLOCK_RULES if exact else _RULES
        found[name] = rules.get(name, _as_it_is)(plain)
    if exact:
        return {name: sorted(rows, key=repr) for name, rows in found.items() if rows}
    _forget_settled(found)
    if historic is not None:
        _forget_mixes(found, did_of(historic))
    _forget_withdrawn(found)
    return {name: sorted(rows, key=repr) for name, rows in found.items() if rows}


def _as_it_is(rows: list[Row]) -> list[Row]:
    return rows


def _without_zeros(rows: list[Row]) -> list[Row]:
    return [row for row in rows if any_count(row)]  # a row of zeros says the same as none


def _masked(rows: list[Row], column: str, value: Any) -> list[Row]:
    return [{**row, column: value} for row in rows]


def _flags(rows: list[Row]) -> list[Row]:
    """Take a gate that is gone for one that never was: the AppView only asks whether it is true."""
    return [{**row, **{name: row[name] or None for name in _GATES}} for row in rows]


_GATES = ("hasThreadGate", "hasPostGate")
_CLOCK_RULES = {
    "actor": lambda rows: _masked(rows, "indexedAt", ""),  # when its handle was looked up
    "notification": lambda rows: _masked(rows, "id", 0),
    "op_thread_reply": lambda rows: [
        {**row, "deletedAt": row["deletedAt"] is not None} for row in rows
    ],
}
_RULES = _CLOCK_RULES | {
    "post": _flags,
    "post_agg": _without_zeros,
    "profile_agg": _without_zeros,
}


def _forget_settled(found: Snapshot) -> None:
    """Leave out questions that no longer matter: deletions of accounts that are back."""
    deleted = {row["did"] for row in found["actor"] if row["upstreamStatus"] == "deleted"}
    found["deletion_check"] = [row for row in found["deletion_check"] if row["did"] in deleted]


def _forget_withdrawn(found: Snapshot) -> None:
    """Leave out what withdrawn verifications told: one that came after its deletion told nobody."""
    standing = {row["uri"] for row in found["record"]}
    found["notification"] = [
        row for row in found["notification"]
        if "verified" not in row["reason"] or row["recordUri"] in standing
    ]  # fmt: skip


def _forget_mixes(found: Snapshot, did: str) -> None:
    found["notification"] = [row for row in found["notification"] if row["author"] != did]
    for name, rows in found.items():
        found[name] = [
            {**row, "indexedAt": ""}
            if "indexedAt" in row and str(row.get("uri", "")).startswith(f"at://{did}/")
            else row
            for row in rows
        ]


def differences(found: Snapshot, expected: Snapshot) -> dict[str, list[tuple[str, Row]]]:
    """Return by table the rows that only one of two snapshots has: "+" is in `found`."""
    result: dict[str, list[tuple[str, Row]]] = {}
    for name in sorted({*found, *expected}):
        ours, theirs = found.get(name, []), expected.get(name, [])
        rows = [("+", row) for row in ours if row not in theirs]
        rows += [("-", row) for row in theirs if row not in ours]
        if rows or len(ours) != len(theirs):
            result[name] = rows
    return result
