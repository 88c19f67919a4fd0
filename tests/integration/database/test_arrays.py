"""Arrays of texts: the bytes are the library's, and PostgreSQL reads what was sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import PyFormat
from psycopg.types.array import ListBinaryDumper

from rsky_pipeline.database.arrays import TextArrayDumper, text_array
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import BadData

TEXTS = st.lists(st.none() | st.text(max_size=40) | st.just("x" * 2_000), min_size=1, max_size=20)


@given(TEXTS.filter(any))
def test_the_bytes_are_those_of_the_library(items: list[str | None]) -> None:
    found = []
    for kind in (ListBinaryDumper, TextArrayDumper):
        upgraded = kind(list).upgrade(items, PyFormat.BINARY)
        found.append(bytes(upgraded.dump(items) or b""))
    assert found[0] == found[1] == text_array(items)


@pytest.mark.parametrize(
    ("kind", "items"),
    [
        ("text", ["a", "", None, 'quo"te', "\\", "{}", "NULL", "ü" * 3_000]),
        ("text", []),
        ("text", [None, None]),
        ("bigint", [1, None, 2**40]),
        ("boolean", [True, None, False]),
        ("varchar", ["x"]),
    ],
)
def test_postgresql_reads_what_was_sent(
    clean_database: str, kind: str, items: list[object]
) -> None:
    with Database.connect(clean_database, name="test") as database:
        rows = database.query(f"SELECT x FROM unnest(%b::{kind}[]) AS n(x)", (items,))
    assert [row[0] for row in rows] == items


@pytest.mark.parametrize("text", ["\0", "\ud800"])
def test_what_cannot_be_stored_is_bad_data(clean_database: str, text: str) -> None:
    with (
        Database.connect(clean_database, name="test") as database,
        pytest.raises(BadData),
    ):
        database.query("SELECT unnest(%b::text[])", (["a", text],))
