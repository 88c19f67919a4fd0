"""Many rows in one statement: one binary array parameter per column.

Callers sort rows by key, so that workers cannot deadlock, and remove duplicates.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from rsky_pipeline.database.connection import Row


def unnest_sql(columns: Sequence[tuple[str, str]]) -> str:
    """Return `unnest(%b::text[], ...) AS incoming("name", ...)` for a FROM clause.

    `columns` are (name, SQL type) pairs; pass one list per column as parameters, see `transpose`.
    """
    arrays = ", ".join(f"%b::{sql_type}[]" for _, sql_type in columns)
    return f"unnest({arrays}) AS incoming({quoted(name for name, _ in columns)})"


def transpose(rows: Iterable[Row], width: int = 0) -> list[list[Any]]:
    """Return the columns of rows as lists; `width` empty lists if there are no rows."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    return columns or [[] for _ in range(width)]


def quoted(names: Iterable[str]) -> str:
    """Return SQL identifiers in double quotes, separated by commas."""
    return ", ".join('"' + name.replace('"', '""') + '"' for name in names)
