"""Many rows in one statement: binary arrays, a parameter for each column.

Callers sort rows by key (no deadlocks between workers) and remove duplicates beforehand.
"""

from collections.abc import Iterable, Sequence

from rsky_pipeline.database.connection import Row


def unnest_sql(columns: Sequence[tuple[str, str]], alias: str = "incoming") -> str:
    """Return `unnest(%b::text[], ...) AS incoming("name", ...)` for a FROM clause.

    `columns` are (name, SQL type) pairs; the parameters are one list for each of them, see
    `transpose`.
    """
    arrays = ", ".join(f"%b::{sql_type}[]" for _, sql_type in columns)
    names = ", ".join(quote(name) for name, _ in columns)
    return f"unnest({arrays}) AS {alias}({names})"


def transpose(rows: Iterable[Row], width: int) -> list[list[object]]:
    """Return `width` columns of the rows, as the parameters for `unnest_sql`."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    return columns or [[] for _ in range(width)]


def quote(identifier: str) -> str:
    """Return an SQL identifier in double quotes."""
    return '"' + identifier.replace('"', '""') + '"'
