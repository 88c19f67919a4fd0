"""One item that cannot be stored holds up no other."""

from collections.abc import Sequence
from functools import partial

import pytest

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.database.isolation import SYSTEMIC, apply_isolated
from rsky_pipeline.database.texts import storable

UPSERT = """
INSERT INTO one (key, value) SELECT * FROM unnest(%b::text[], %b::text[])
ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value
"""


@pytest.fixture
def table(clean_database: str) -> str:
    with Database.connect(clean_database, name="test") as database:
        database.execute("CREATE TABLE one (key text PRIMARY KEY, value text CHECK (value <> '!'))")
    return clean_database


def upsert(database: Database, rows: Sequence[tuple[str, str]]) -> None:
    with database.transaction() as tx:
        tx.execute(UPSERT, [[key for key, _ in rows], [value for _, value in rows]])


@pytest.mark.parametrize("bad", ["a\0b", "\ud800", "!"])
def test_only_the_bad_row_is_left_out(table: str, bad: str) -> None:
    rows = [(f"key {number}", "value") for number in range(63)]
    with Database.connect(table, name="test") as database:
        refused = apply_isolated([*rows[:40], ("bad", bad), *rows[40:]], partial(upsert, database))
        assert [culprit.entry for culprit in refused] == [("bad", bad)]
        assert refused[0].reason == "bad_data"
        assert sorted(database.query("SELECT * FROM one")) == sorted(rows)


def test_a_row_that_a_statement_would_touch_twice_is_written_on_its_own(table: str) -> None:
    with Database.connect(table, name="test") as database:
        rows = [("a", "1"), ("b", "1"), ("b", "2"), ("c", "1")]
        with pytest.raises(DatabaseError, match="21000"):
            upsert(database, rows)
        assert apply_isolated(rows, partial(upsert, database)) == []
        assert sorted(database.query("SELECT * FROM one")) == [("a", "1"), ("b", "2"), ("c", "1")]


def test_an_error_of_a_class_of_its_own_is_isolated_too(table: str) -> None:
    with Database.connect(table, name="test") as database:
        database.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN IF NEW.key = 'b' THEN RAISE 'not this one'; END IF; RETURN NEW; END $$; "
            "CREATE TRIGGER refuse BEFORE INSERT ON one FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
        rows = [("a", "1"), ("b", "1"), ("c", "1")]
        refused = apply_isolated(rows, partial(upsert, database))
        (culprit,) = refused
        assert (culprit.entry, culprit.reason) == (("b", "1"), "internal_error")
        assert culprit.message.startswith("not this one (SQLSTATE P0001)")


def test_many_items_of_bad_data_are_refused_each(table: str) -> None:
    with Database.connect(table, name="test") as database:
        rows = [(f"key {number}", "!") for number in range(SYSTEMIC)]
        assert len(apply_isolated(rows, partial(upsert, database))) == SYSTEMIC


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("plain", "plain"),
        ("a\0b\ud800c", "a\ufffdb?c"),
        ("x" * 5_000, "x" * 1_000),
        ("€" * 5_000, "€" * 333),
    ],
)
def test_texts_of_strangers_are_made_storable(table: str, text: str, stored: str) -> None:
    assert storable(text) == stored
    with Database.connect(table, name="test") as database:
        upsert(database, [(storable(text), storable(text))])
        assert database.query("SELECT key, value FROM one") == [(stored, stored)]
