"""The schema against what the official migrations make, and upgrades of what is there."""

import re

import psycopg
import pytest

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.database.schema import Difference, check, initialise
from rsky_pipeline.database.schema.catalog import compare, read_catalog
from tests.data import test_data
from tests.stores import execute


def load_official(url: str) -> None:
    text = test_data("recorded/appview-schema.sql").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("\\")]
    script = "\n".join(lines).replace("appview_truth", "bsky")
    execute(url, "CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(script.encode())


def catalog(url: str) -> dict[str, str]:
    database = Database.connect(url, name="test")
    with database.transaction() as transaction:
        found = read_catalog(transaction, "bsky")
    database.close()
    return {key: text for key, text in found.items() if not key.startswith("migration ")}


def test_it_equals_the_official_one_but_for_the_listed_additions(
    clean_database: str, schema_database: str
) -> None:
    load_official(clean_database)
    differences = compare(catalog(clean_database), catalog(schema_database))
    assert [item.subject for item in differences] == [
        "column record.rev",
        "index like_subject_sort_at_creator_idx",  # of a migration later than the recording
        "index op_thread_reply_uri_idx",
    ]
    assert all(item.expected is None for item in differences)


def test_initialising_twice_changes_nothing(schema_database: str) -> None:
    assert initialise(schema_database, "bsky") == []
    assert check(schema_database, "bsky") == []


def test_an_official_database_gets_only_what_is_ours(clean_database: str) -> None:
    load_official(clean_database)
    before = catalog(clean_database)
    assert initialise(clean_database, "bsky") == [
        "added the column record.rev",
        "created the schema rsky_pipeline",
    ]
    after = catalog(clean_database)
    assert {key: after[key] for key in before} == before
    missing = {item.subject for item in check(clean_database, "bsky")}
    missing.remove("index like_subject_sort_at_creator_idx")
    assert all(subject.startswith("migration ") for subject in missing)


def test_another_schema_name(clean_database: str) -> None:
    initialise(clean_database, "other")
    assert check(clean_database, "other") == []
    with pytest.raises(DatabaseError, match="letters"):
        initialise(clean_database, "a;b")


def test_every_official_migration_is_recorded(schema_database: str) -> None:
    database = Database.connect(schema_database, name="test")
    names = [row[0] for row in database.query("SELECT name FROM kysely_migration ORDER BY name")]
    assert len(names) == 59
    assert all(re.fullmatch(r"_20\d{6}T\d{9}Z", name) for name in names)
    assert database.query("SELECT * FROM kysely_migration_lock") == [("migration_lock", 0)]
    database.close()


def test_differences_are_found_column_by_column(schema_database: str) -> None:
    execute(schema_database, "DROP INDEX bsky.like_creator_cursor_idx")
    execute(schema_database, "ALTER TABLE bsky.post ALTER COLUMN text TYPE text")
    execute(schema_database, "ALTER TABLE bsky.actor ADD COLUMN extra text")
    execute(schema_database, "ALTER TABLE rsky_pipeline.tombstone DROP COLUMN did")
    found = {item.subject: item for item in check(schema_database, "bsky")}
    assert found["index like_creator_cursor_idx"].found is None
    assert "db init" in found["index like_creator_cursor_idx"].remedy
    assert found["column post.text"] == Difference(
        "column post.text",
        "character varying NOT NULL DEFAULT none",
        "text NOT NULL DEFAULT none",
    )
    assert found["column actor.extra"].expected is None
    assert found["column tombstone.did (rsky_pipeline)"].found is None
    assert check(schema_database, "bsky") == list(found.values())


def test_foreign_tables_are_not_mixed_with_ours(clean_database: str) -> None:
    execute(clean_database, "CREATE SCHEMA bsky")
    execute(clean_database, "CREATE TABLE bsky.something (id int)")
    with pytest.raises(DatabaseError, match="no AppView"):
        initialise(clean_database, "bsky")
