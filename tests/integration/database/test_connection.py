"""Connections: session settings, and the error classes that callers act on."""

import threading

import pytest

from rsky_pipeline.database.bulk import columns, copy_into_temp, unnest
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import (
    BadData,
    DatabaseError,
    DatabaseUnavailable,
    SchemaMismatch,
    TransactionConflict,
)
from tests.stores import execute, other_database


def test_a_session_is_set_up(schema_database: str) -> None:
    database = Database.connect(schema_database, name="test")
    settings: dict[str, str] = dict(
        database.query(
            "SELECT name, setting FROM pg_settings WHERE name IN"
            " ('TimeZone', 'search_path', 'statement_timeout', 'application_name')"
        )
    )
    assert settings == {
        "TimeZone": "UTC",
        "search_path": '"bsky", public',
        "statement_timeout": "60000",
        "application_name": "rsky-pipeline test",
    }
    database.close()


def test_rows_go_in_by_arrays_and_by_copy(schema_database: str) -> None:
    database = Database.connect(schema_database, name="test")
    rows = [("did:plc:a", None), ("did:plc:b", "b.test")]
    with database.transaction() as transaction:
        transaction.execute(
            f"INSERT INTO actor (did, handle, \"indexedAt\") SELECT *, '' FROM "
            f"{unnest(['text', 'text'])}",
            columns(rows, 2),
        )
        copy_into_temp(transaction, "new", [("did", "text"), ("n", "int8")], [("x", 1), ("y", 2)])
        assert transaction.query("SELECT did, n FROM new ORDER BY n") == [("x", 1), ("y", 2)]
    assert database.query("SELECT did, handle FROM actor ORDER BY did") == rows
    database.close()


def test_an_exception_rolls_back(schema_database: str) -> None:
    database = Database.connect(schema_database, name="test")

    def fail() -> None:
        with database.transaction() as transaction:
            transaction.execute("INSERT INTO view_param (name) VALUES ('x')")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert database.query("SELECT 1 FROM view_param WHERE name = 'x'") == []
    database.close()


@pytest.mark.parametrize(
    ("statement", "parameters", "error"),
    [
        ("INSERT INTO view_param (name) VALUES (%s)", ["a\x00b"], BadData),
        ("INSERT INTO view_param (name) VALUES (%b)", ["a\x00b"], BadData),
        ("INSERT INTO view_param (name) VALUES (%s)", ["\ud800"], BadData),
        ("INSERT INTO view_param (name) VALUES ('whats_hot_interval')", [], BadData),
        ("INSERT INTO view_param (name) VALUES (NULL)", [], BadData),
        ("SELECT 1 / 0", [], BadData),
        ("SELECT * FROM nothing", [], SchemaMismatch),
        ("SELECT nothing FROM post", [], SchemaMismatch),
        ("SELEKT", [], DatabaseError),
    ],
)
def test_error_classes(
    schema_database: str, statement: str, parameters: list[str], error: type[DatabaseError]
) -> None:
    database = Database.connect(schema_database, name="test")
    with pytest.raises(DatabaseError) as caught:
        database.query(statement, parameters)
    assert type(caught.value) is error
    assert database.query("SELECT 1") == [(1,)]
    database.close()


def test_a_timeout_is_a_conflict(schema_database: str) -> None:
    database = Database.connect(schema_database, name="test", statement_timeout_ms=50)
    with pytest.raises(TransactionConflict):
        database.query("SELECT pg_sleep(5)")
    database.close()


def test_a_deadlock_is_a_conflict(schema_database: str) -> None:
    first, second = (Database.connect(schema_database, name=name) for name in ("a", "b"))
    outcomes: list[str] = []
    barrier = threading.Barrier(2)
    names = ["whats_hot_interval", "whats_hot_like_threshold"]

    def update(database: Database, order: list[str]) -> None:
        try:
            with database.transaction() as transaction:
                for name in order:
                    transaction.execute("UPDATE view_param SET value = '1' WHERE name = %s", [name])
                    if name == order[0]:
                        barrier.wait(10)
            outcomes.append("done")
        except TransactionConflict:
            outcomes.append("conflict")

    threads = [
        threading.Thread(target=update, args=(first, names)),
        threading.Thread(target=update, args=(second, names[::-1])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["conflict", "done"]
    first.close()
    second.close()


def test_a_lost_connection_is_unavailable(schema_database: str) -> None:
    database = Database.connect(schema_database, name="victim")
    (pid,) = database.query("SELECT pg_backend_pid()")[0]
    execute(schema_database, f"SELECT pg_terminate_backend({pid})")
    with pytest.raises(DatabaseUnavailable):
        database.query("SELECT 1")
    with pytest.raises(DatabaseUnavailable):
        database.query("SELECT 1")
    database.close()


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(DatabaseUnavailable):
        Database.connect("postgresql://127.0.0.1:1/none", name="test")


def test_a_database_that_is_not_there_is_said_plainly(schema_database: str) -> None:
    with pytest.raises(DatabaseError, match="does not exist"):
        Database.connect(other_database(schema_database, "missing"), name="test")
