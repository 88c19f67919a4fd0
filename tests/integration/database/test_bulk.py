"""Arrays and COPY carry every type of value that the indexer writes."""

import pytest

from rsky_pipeline.database.bulk import transpose, unnest_sql
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import BadDataError

COLUMNS = [("text", "text"), ("number", "int8"), ("flag", "bool"), ("doc", "jsonb")]
ROWS: list[tuple[object, ...]] = [
    ("ä \U0001f600", 2**40, True, '{"a": [1, null]}'),
    ("", -1, False, "[]"),
    (None, None, None, None),
]
STORED = [
    ("ä \U0001f600", 2**40, True, {"a": [1, None]}),
    ("", -1, False, []),
    (None, None, None, None),
]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_arrays_keep_values_and_order(clean_database: str, count: int) -> None:
    with Database.connect(clean_database, name="test") as database:
        rows = ROWS[3 - count :]
        found = database.query(f"SELECT * FROM {unnest_sql(COLUMNS)}", transpose(rows, 4))
        assert found == STORED[3 - count :]


def test_a_column_of_nulls_has_its_type(clean_database: str) -> None:
    with Database.connect(clean_database, name="test") as database:
        found = database.query(
            f"SELECT pg_typeof(doc)::text, doc FROM {unnest_sql(COLUMNS)}", transpose(ROWS[2:], 4)
        )
        assert found == [("jsonb", None)]


def test_copy_keeps_values_and_one_poison_row_fails_it(clean_database: str) -> None:
    with Database.connect(clean_database, name="test") as database:
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS)
        database.execute(f"CREATE TEMPORARY TABLE incoming ({columns})")

        def copy(rows: list[tuple[object, ...]]) -> None:
            with database.transaction() as tx:
                sql = "COPY incoming FROM STDIN (FORMAT BINARY)"
                assert tx.copy_in(sql, [kind for _, kind in COLUMNS], rows) == len(rows)

        for poison in ("a\0b", "\ud800"):
            with pytest.raises(BadDataError):
                copy([*ROWS, (poison, 1, True, "{}")])
        with pytest.raises(BadDataError):
            copy([("x", 1, True, '{"a": "\\u0000"}')])  # jsonb cannot hold it
        assert database.query("SELECT * FROM incoming") == []
        copy(ROWS)
        assert database.query("SELECT * FROM incoming") == STORED
