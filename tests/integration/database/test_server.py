"""What a session sets for itself, and which settings of a server are found fault with."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from rsky_pipeline.database.connection import Database, _connection_string
from rsky_pipeline.database.schema import check
from rsky_pipeline.database.server import check as check_settings
from rsky_pipeline.database.server import check_server
from rsky_pipeline.embedded import postgres
from tests import stores
from tests.stores import execute

ODD = {
    "datestyle": "'SQL, DMY'",
    "intervalstyle": "'sql_standard'",
    "timezone": "'Asia/Tokyo'",
    "bytea_output": "'escape'",
    "extra_float_digits": "-15",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "client_encoding": "latin1",
    "default_transaction_isolation": "'serializable'",
    "default_transaction_deferrable": "on",
}


@pytest.fixture
def odd_role(clean_database: str) -> Iterator[str]:
    """The URL of a database whose role has other defaults."""
    for name, value in ODD.items():
        execute(clean_database, f"ALTER ROLE CURRENT_USER SET {name} = {value}")
    try:
        yield clean_database
    finally:
        execute(clean_database, "ALTER ROLE CURRENT_USER RESET ALL")


def test_values_are_read_and_written_alike_whatever_the_role_has(odd_role: str) -> None:
    moment = datetime(2026, 3, 29, 1, 2, 3, 456_789, UTC)
    with Database.connect(odd_role, name="test") as database:
        row = database.query(
            "SELECT %s::timestamptz, %s::text, interval '1 day 2 hours', '\\x00ff'::bytea, "
            "0.1::float8 + 0.2, '{NULL}'::text[], 'a\\b', NULL = NULL, "
            "current_setting('transaction_isolation'), %s::text || quote_ident('a'), "
            "format_type('pg_node_tree'::regtype, NULL)",
            [moment, moment.isoformat(), "\u0141\U0001f98b"],
        )[0]
    assert row == (
        moment, "2026-03-29T01:02:03.456789+00:00", timedelta(days=1, hours=2), b"\x00\xff",
        0.1 + 0.2, [None], "a\\b", None, "read committed",
        "\u0141\U0001f98ba", "pg_node_tree",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("default", "session"),
    [("off", "on"), ("local", "local"), ("on", "on"), ("remote_apply", "remote_apply")],
)
def test_a_commit_is_on_the_disk_and_never_less_than_the_server_promises(
    clean_database: str, default: str, session: str
) -> None:
    execute(clean_database, f"ALTER ROLE CURRENT_USER SET synchronous_commit = {default}")
    try:
        with Database.connect(clean_database, name="test") as database:
            assert database.query("SHOW synchronous_commit") == [(session,)]
    finally:
        execute(clean_database, "ALTER ROLE CURRENT_USER RESET ALL")


def test_a_peer_that_does_not_acknowledge_is_given_up_after_half_a_minute() -> None:
    found = _connection_string("postgresql://a@db.example/b", "test")
    assert "tcp_user_timeout=30000" in found
    found = _connection_string("postgresql://a@db.example/b?tcp_user_timeout=5000", "test")
    assert "tcp_user_timeout=5000" in found


def test_a_server_that_can_lose_what_it_committed_is_an_error() -> None:
    options = {**stores.FAST_POSTGRES, "fsync": "off", "full_page_writes": "off",
               "wal_compression": "pglz", "checkpoint_timeout": "5min"}  # fmt: skip
    with stores.scratch_directory() as folder:
        program = postgres.prepare(stores.scratch_settings(folder), options)
        with stores.running(program), Database.connect(program.url, name="test") as database:
            with database.transaction() as tx:
                found = {(item.severity, item.name, item.found) for item in check_server(tx)}
            stores.make_schema_template(program.url)
            url = stores.other_database(program.url, stores.TEMPLATE)
            differences = check(url)
    assert found == {
        ("error", "fsync", "off"),
        ("error", "full_page_writes", "off"),
        ("advice", "wal_compression", "pglz"),
        ("advice", "max_wal_size", "512MB"),
        ("advice", "checkpoint_timeout", "300s"),
    }
    assert [(item.severity, item.subject) for item in differences] == [
        ("error", "setting fsync"),
        ("error", "setting full_page_writes"),
    ]


def test_a_server_that_takes_no_writes_is_an_error(clean_database: str) -> None:
    execute(clean_database, "ALTER ROLE CURRENT_USER SET default_transaction_read_only = on")
    try:
        found = [(item.severity, item.name) for item in check_settings(clean_database)]
    finally:
        with psycopg.connect(clean_database, options="-c default_transaction_read_only=off") as own:
            own.execute("ALTER ROLE CURRENT_USER RESET ALL")
    assert found[0] == ("error", "default_transaction_read_only")


@pytest.mark.parametrize(("free_gb", "wal"), [(0, 1), (3, 1), (64, 8), (10_000, 20)])
def test_the_embedded_server_keeps_to_the_disk(free_gb: int, wal: int) -> None:
    assert postgres.wal_gigabytes(free_gb * 1024**3) == wal


def test_large_tables_that_are_seldom_vacuumed_are_named(schema_database: str) -> None:
    """Tables of `db init` have a threshold of their own, those of an official migrator have not."""
    large = ("record", "like", "post", "follow", "profile_agg")
    name = "autovacuum_vacuum_scale_factor"
    with Database.connect(schema_database, name="test") as database:

        def found() -> list[str]:
            with database.transaction() as tx:
                return [item.found for item in check_server(tx) if item.name == name]

        for number, table in enumerate(large):
            database.execute(
                "UPDATE pg_class SET reltuples = %s WHERE oid = %s::regclass",
                [1e8 - 1e6 * number, f'bsky."{table}"'],
            )
        assert found() == []
        for table in large[1:]:
            database.execute(f'ALTER TABLE bsky."{table}" RESET ({name})')
        assert found() == ["more than 0.05 for like, post, follow and 1 other"]
        for table in large[1:]:
            database.execute(f'ALTER TABLE bsky."{table}" SET ({name} = 0.01)')
        assert found() == []
    assert check(schema_database) == []  # the tables are those that are expected


@pytest.mark.parametrize(("memory_gb", "buffers"), [(1, 256), (4, 512), (23, 2_944), (512, 8_192)])
def test_the_embedded_server_keeps_to_the_memory(memory_gb: int, buffers: int) -> None:
    assert postgres.buffers_megabytes(memory_gb * 1024**3) == buffers
