"""Arrays and rows of texts: the bytes are the library's, and PostgreSQL reads what was sent."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg._copy_base import BinaryFormatter
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import Format
from psycopg.types.array import ListBinaryDumper
from psycopg.types.bool import BoolBinaryDumper
from psycopg.types.numeric import Int8BinaryDumper

from rsky_pipeline.atproto import compiled
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import BadDataError, RowExistsError
from rsky_pipeline.database.texts import (
    TEXT_OID,
    TextArrayDumper,
    copied_rows,
    pack_array,
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
        ("bigint", [1, None, 2**40, -(2**63), 2**63 - 1]),
        ("bigint", []),
        ("integer", [1, -7]),
        ("numeric", [2**70]),
        ("boolean", [True, None, False]),
        ("boolean", [None]),
        ("varchar", ["x"]),
        ("float8", [0.5, None]),
        ("timestamptz", [datetime(2026, 11, 30, tzinfo=UTC)]),
    ],
)
@pytest.mark.parametrize("by_key", [False, True])
def test_postgresql_reads_what_was_sent(
    clean_database: str, kind: str, items: list[object], by_key: bool
) -> None:
    """By a cursor, and past it: prepared at the second time, and run again at the third."""
    with Database.connect(clean_database, name="test", by_key=by_key) as database:
        for _ in range(3):
            rows = database.query(f"SELECT x FROM unnest(%b::{kind}[]) AS n(x)", (items,))
            assert [row[0] for row in rows] == items


@given(
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.lists(st.none() | st.booleans(), min_size=1),
)
def test_arrays_are_those_of_the_library(numbers: list[Any], booleans: list[Any]) -> None:
    for items, dumper, oid in (
        (numbers, Int8BinaryDumper, 1016),
        (booleans, BoolBinaryDumper, 1000),
    ):
        if any(item is not None for item in items):
            library = ListBinaryDumper(list)
            library.sub_dumper = dumper(type(items[0]))
            expected = oid, bytes(library.dump(items) or b"")
            assert pack_array(items) == (expected if compiled.COMPILED else None)


@pytest.mark.parametrize("items", [[1, "a"], [1, True], [True, 1], [2**63], [0.5], [b"a"], [[1]]])
def test_other_arrays_are_left_to_the_library(items: list[Any]) -> None:
    assert pack_array(items) is None


@pytest.mark.parametrize("by_key", [False, True])
def test_single_values_arrive_as_they_are(clean_database: str, by_key: bool) -> None:
    values = ("a'ü", 7, -(2**40), 2**70, 0.5, True, None, timedelta(days=3))
    kinds = ("text", "int", "bigint", "numeric", "float8", "boolean", "text", "interval")
    with Database.connect(clean_database, name="test", by_key=by_key) as database:
        for kind, value in zip(kinds, values, strict=True):
            for _ in range(3):
                sql = f"SELECT %s::{kind}, '%%', pg_typeof(%s::{kind})::text"
                ((found, percent, _),) = database.query(sql, (value, value))
                assert (found, percent) == (value, "%")
            assert database.execute(f"SELECT %s::{kind}", (value,)) == 1
        for text in ("a\0", "\ud800"):
            with pytest.raises(BadDataError):
                database.query("SELECT %s::text", (text,))


def test_many_statements_are_repeated(clean_database: str) -> None:
    """Their names stay different in the 63 bytes that the server keeps of each."""
    statements = [f"SELECT %s::bigint + {number}" for number in range(150)]
    with Database.connect(clean_database, name="test", by_key=True) as database:
        for _ in range(3):
            for number, statement in enumerate(statements):
                assert database.query(statement, (1,)) == [(number + 1,)]
        own = "SELECT count(*) FROM pg_prepared_statements WHERE name ~ '^rsky_[0-9]+$'"
        assert database.query(own) == [(150,)]


def test_a_statement_that_is_repeated_fails_as_it_does_the_first_time(clean_database: str) -> None:
    with Database.connect(clean_database, name="test", by_key=True) as database:
        database.execute("CREATE TEMP TABLE t (a bigint PRIMARY KEY)")
        insert = "INSERT INTO t SELECT * FROM unnest(%b::bigint[])"
        for number in range(4):
            assert database.execute(insert, ([number],)) == 1
            with pytest.raises(RowExistsError):
                database.execute(insert, ([number],))
        assert len(database.query("SELECT * FROM t")) == 4


@pytest.mark.parametrize("text", ["\0", "\ud800"])
def test_what_cannot_be_stored_is_bad_data(clean_database: str, text: str) -> None:
    with (
        Database.connect(clean_database, name="test") as database,
        pytest.raises(BadDataError),
    ):
        database.query("SELECT unnest(%b::text[])", (["a", text],))
