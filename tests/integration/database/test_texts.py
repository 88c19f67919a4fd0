"""Arrays and rows of texts: the bytes are the library's, and PostgreSQL reads what was sent."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg._copy_base import BinaryFormatter
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import Format
from psycopg.types.array import ListBinaryDumper

from rsky_pipeline.atproto import compiled
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import BadDataError
from rsky_pipeline.database.texts import (
    TEXT_OID,
    TextArrayDumper,
    copied_rows,
)

TEXTS = st.lists(st.none() | st.text(max_size=40) | st.just("x" * 2_000), min_size=1, max_size=20)


@given(TEXTS.filter(any))
def test_the_bytes_are_those_of_the_library(items: list[str | None]) -> None:
    found = []
    for kind in (ListBinaryDumper, TextArrayDumper):
        upgraded = kind(list).upgrade(items, PyFormat.BINARY)
        found.append(bytes(upgraded.dump(items) or b""))
    assert found[0] == found[1]


@given(st.lists(st.tuples(st.none() | st.text(max_size=40), st.text()), max_size=20))
def test_rows_are_those_of_the_library(rows: list[tuple[str | None, str]]) -> None:
    library = BinaryFormatter(Transformer())
    library.transformer.set_dumper_types([TEXT_OID, TEXT_OID], Format.BINARY)
    expected = b"".join(bytes(library.write_row(row)) for row in rows) + bytes(library.end())
    assert copied_rows(rows) == (expected if compiled.COMPILED else None)


@pytest.mark.parametrize("rows", [[("a", 1)], [["a"]], [(b"a",)], [("a", True)]])
def test_other_rows_are_left_to_the_library(rows: list[Any]) -> None:
    assert copied_rows(rows) is None


@pytest.mark.parametrize("rows", [[], [("a", None)], [("ü" * 100_000, "")] * 30, [("a", "b")]])
def test_postgresql_copies_what_was_packed(
    clean_database: str, rows: list[tuple[str | None, ...]]
) -> None:
    with Database.connect(clean_database, name="test") as database, database.transaction() as tx:
        tx.execute("CREATE TEMP TABLE t (a text, b text)")
        sql = "COPY t FROM STDIN (FORMAT BINARY)"
        assert tx.copy_in(sql, ("text", "text"), rows) == len(rows)
        assert tx.query("SELECT * FROM t") == rows


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
        pytest.raises(BadDataError),
    ):
        database.query("SELECT unnest(%b::text[])", (["a", text],))
