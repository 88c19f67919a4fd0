"""Comparing a database with the truth of a simulated network, row for row."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rsky_pipeline.database.connection import Database

EXAMPLES = 3
_QUERIES: Mapping[str, str] = {
    "record": "SELECT uri, cid, did, json FROM record",
    "post": "SELECT uri, cid, creator, text FROM post",
    "like": 'SELECT uri, creator, subject FROM "like"',
    "repost": "SELECT uri, creator, subject FROM repost",
    "follow": 'SELECT uri, creator, "subjectDid" FROM follow',
    "actor_block": 'SELECT uri, creator, "subjectDid" FROM actor_block',
    "likeCount": 'SELECT uri, "likeCount" FROM post_agg WHERE "likeCount" <> 0',
    "repostCount": 'SELECT uri, "repostCount" FROM post_agg WHERE "repostCount" <> 0',
    "followersCount": 'SELECT did, "followersCount" FROM profile_agg WHERE "followersCount" <> 0',
    "followsCount": 'SELECT did, "followsCount" FROM profile_agg WHERE "followsCount" <> 0',
    "postsCount": 'SELECT did, "postsCount" FROM profile_agg WHERE "postsCount" <> 0',
}


@dataclass(frozen=True, slots=True)
class TableReport:
    """How one table (or count) compares."""

    name: str
    expected: int
    found: int
    missing: int
    extra: int
    different: int
    examples: tuple[str, ...]

    @property
    def differences(self) -> int:
        """All rows that are not as they should be."""
        return self.missing + self.extra + self.different


def compare(url: str, schema: str, truth: Mapping[str, list[list[Any]]]) -> list[TableReport]:
    """Compare every table. Raises DatabaseError."""
    database = Database.connect(url, schema=schema, name="compare")
    try:
        return [_table(database, name, truth[name]) for name in _QUERIES]
    finally:
        database.close()


def _table(database: Database, name: str, rows: list[list[Any]]) -> TableReport:
    expected = {row[0]: _comparable(name, row) for row in rows}
    found = {row[0]: _comparable(name, list(row)) for row in database.query(_QUERIES[name])}
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    different = sorted(key for key in expected.keys() & found.keys() if expected[key] != found[key])
    examples = [f"missing {key}" for key in missing[:EXAMPLES]]
    examples += [f"extra {key}" for key in extra[:EXAMPLES]]
    examples += [
        f"{key}: expected {expected[key]}, found {found[key]}" for key in different[:EXAMPLES]
    ]
    return TableReport(
        name, len(expected), len(found), len(missing), len(extra), len(different), tuple(examples)
    )


def _comparable(name: str, row: list[Any]) -> list[Any]:
    return [*row[:3], json.loads(row[3])] if name == "record" else row
