"""Comparing a database with the truth, row for row."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from rsky_pipeline.database.connection import Database
from rsky_pipeline.demo.simulator.tables import (
    FLAG,
    JSON,
    TABLES,
    TIME,
    ComparedTable,
    Rows,
    Truth,
    admits,
    canonical,
    utc_milliseconds,
)

EXAMPLES = 5
_NOTIFICATIONS = """
SELECT n.did, n."recordUri", n.author, n.reason, COALESCE(n."reasonSubject", ''), count(*)
FROM notification n GROUP BY 1, 2, 3, 4, 5
"""


@dataclass(frozen=True, slots=True)
class TableReport:
    """How one table compares; `expected` leaves out rows that may be there or not."""

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


def compare(
    url: str, schema: str, truth: Truth, leave_out: Collection[str] = ()
) -> list[TableReport]:
    """Compare every table with its truth; `leave_out` names columns as `table.column`.

    Raises DatabaseError.
    """
    with Database.connect(url, schema=schema, name="compare", statement_timeout_ms=0) as database:
        reports = []
        for table in TABLES.values():
            ignored = {
                index
                for index, column in enumerate(table.columns)
                if f"{table.name}.{column}" in leave_out
            }
            found = rows_to_form(table, database.query(table.query))
            reports.append(table_report(table, truth.get(table.name, {}), found, ignored))
        reports.append(_notifications(database, truth))
        return reports


def rows_to_form(table: ComparedTable, rows: Sequence[tuple[Any, ...]]) -> Rows:
    """Return queried rows by key, each value in the form that is compared."""
    size, forms = len(table.key), table.forms
    return {row[:size]: tuple(map(_brought_to_form, row[size:], forms)) for row in rows}


def _brought_to_form(value: Any, form: str) -> Any:
    if form == FLAG:
        return bool(value)  # official rows leave a flag that is not set NULL
    if value is None:
        return None
    if form == TIME:
        return utc_milliseconds(value)
    return canonical(orjson.loads(value)) if form == JSON else value


def table_report(
    table: ComparedTable, expected: Rows, found: Rows, ignored: Collection[int] = ()
) -> TableReport:
    """Compare the rows of one table; `ignored` are places of columns."""
    nothing = (None,) * len(table.columns)
    optional = {key for key, row in expected.items() if all(map(admits, row, nothing))}
    absent = expected.keys() - found.keys()
    missing = sorted(absent - optional)
    extra = sorted(found.keys() - expected.keys())
    examples = [f"missing {_shown(key)}" for key in missing[:EXAMPLES]]
    examples += [f"not expected {_shown(key)}" for key in extra[:EXAMPLES]]
    different = 0
    for key in expected.keys() & found.keys():
        wrong = [
            f"{column} is {_shown(is_now)}, expected {_shown(wanted)}"
            for index, (column, wanted, is_now) in enumerate(
                zip(table.columns, expected[key], found[key], strict=True)
            )
            if index not in ignored and not admits(wanted, is_now)
        ]
        if wrong:
            different += 1
            if different <= EXAMPLES:
                examples.append(f"{_shown(key)}: {'; '.join(wrong)}")
    return TableReport(
        table.name, len(expected) - len(absent & optional), len(found), len(missing), len(extra),
        different, tuple(examples),
    )  # fmt: skip


def _notifications(database: Database, truth: Truth) -> TableReport:
    """Check rules of every notification: its record stands, and nobody is notified twice.

    Which ones there are depends on whether a record came first with history or live.
    """
    authors = {key[0]: row[1] for key, row in truth["record"].items()}
    extra, examples = 0, []
    rows = database.query(_NOTIFICATIONS)
    for did, uri, author, reason, subject, count in rows:
        if authors.get(uri) == author and count == 1 and uri[5:].startswith(author):
            continue
        if "/app.bsky.graph.verification/" in uri and author == uri[5:].partition("/")[0]:
            continue  # the notification of its end stays
        extra += 1
        if extra <= EXAMPLES:
            examples.append(f"{count} times: {reason} of {uri} to {did} about {subject}")
    return TableReport("notification", len(rows) - extra, len(rows), 0, extra, 0, tuple(examples))


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
