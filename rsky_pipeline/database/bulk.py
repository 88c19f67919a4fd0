"""Many rows in one statement."""

from collections.abc import Iterable, Sequence
from typing import Any

from rsky_pipeline.database.connection import Transaction


def quoted(name: str) -> str:
    """Return a name as an SQL identifier; the schema's names are in camel case."""
    return '"' + name.replace('"', '""') + '"'


def unnest(types: Sequence[str]) -> str:
    """Return `unnest(...)` over one binary array parameter a column.

    One prepared statement serves any number of rows, and the client sends arrays in binary form,
    several times cheaper than a row at a time.
    """
    return "unnest(" + ", ".join(f"%b::{kind}[]" for kind in types) + ")"


def columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """Return the columns of some rows, as the parameters of `unnest`."""
    return [[row[index] for row in rows] for index in range(width)]


def copy_into_temp(
    transaction: Transaction,
    name: str,
    definition: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[Any]],
) -> None:
    """Fill a temporary table that ends with the transaction; best from some 2,000 rows on."""
    body = ", ".join(f"{quoted(column)} {kind}" for column, kind in definition)
    transaction.execute(f"CREATE TEMP TABLE {quoted(name)} ({body}) ON COMMIT DROP")
    names = ", ".join(quoted(column) for column, _ in definition)
    statement = f"COPY {quoted(name)} ({names}) FROM STDIN (FORMAT binary)"
    with transaction.raw.cursor().copy(statement) as copy:
        copy.set_types([kind for _, kind in definition])
        for row in rows:
            copy.write_row(row)
