"""Connections: session settings, and the error classes that callers act on."""

import contextlib
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from functools import partial

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from rsky_pipeline.database import patience
from rsky_pipeline.database.connection import Database, _connection_string
from rsky_pipeline.database.errors import (
    BadDataError,
    DatabaseError,
    DatabaseUnavailableError,
    RowExistsError,
    SchemaMismatchError,
    TransactionConflictError,
)
from rsky_pipeline.indexer.upkeep import blockers
from rsky_pipeline.runtime.link import Link
from tests.integration.streams.support import UnreliableProxy
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
        "search_path": '"bsky", rsky_pipeline, public',
        "statement_timeout": "60000",
        "application_name": "rsky-pipeline test",
    }
    database.close()


@pytest.mark.parametrize(("by_key", "expected"), [(True, {"off"}), (False, {"on"})])
def test_plans_by_key_are_asked_for(by_key: bool, expected: set[str], schema_database: str) -> None:
    execute(schema_database, "ALTER ROLE CURRENT_USER SET jit = on")
    try:
        with Database.connect(schema_database, name="test", by_key=by_key) as database:
            rows = database.query(
                "SELECT setting FROM pg_settings WHERE name IN ('jit', 'enable_seqscan')"
            )
        assert {row[0] for row in rows} == expected
    finally:
        execute(schema_database, "ALTER ROLE CURRENT_USER RESET jit")


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


def test_what_a_transaction_wrote_is_kept_or_gone_as_a_whole(schema_database: str) -> None:
    def write(*names: str, then: type[Exception] | None = None) -> None:
        with database.transaction() as tx:
            for name in names:
                tx.execute("INSERT INTO view_param (name) VALUES (%s)", (name,))
            if then is not None:
                raise then

    with Database.connect(schema_database, name="test") as database:
        write("a", "b")
        with pytest.raises(KeyError):
            write("c", "d", then=KeyError)
        with pytest.raises(BadDataError):
            write("e", "a")
        names = "SELECT name FROM view_param WHERE length(name) = 1 ORDER BY name"
        assert database.query(names) == [("a",), ("b",)]


def test_a_commit_that_the_server_turns_into_a_rollback_is_an_error(schema_database: str) -> None:
    with Database.connect(schema_database, name="test") as database:

        def write() -> None:
            with database.transaction() as tx:
                tx.execute("INSERT INTO view_param (name) VALUES ('x')")
                with contextlib.suppress(DatabaseError):
                    tx.execute("SELECT 1/0")

        with pytest.raises(DatabaseError, match="rolled back"):
            write()
        assert database.query("SELECT 1 FROM view_param WHERE name = 'x'") == []


def test_a_transaction_that_is_over_refuses_statements(schema_database: str) -> None:
    with Database.connect(schema_database, name="test") as database:
        with database.transaction() as tx:
            assert tx.query("SELECT 1") == [(1,)]
        for use in (tx.query, tx.execute):
            with pytest.raises(ValueError, match="over"):
                use("SELECT 1")


def test_a_transaction_inside_another_one_is_refused(schema_database: str) -> None:
    with Database.connect(schema_database, name="test") as database:
        with database.transaction() as tx:
            with pytest.raises(ValueError, match="open already"), database.transaction():
                pass
            tx.execute("INSERT INTO view_param (name) VALUES ('kept')")
        assert database.query("SELECT name FROM view_param WHERE name = 'kept'") == [("kept",)]


# Does not compress to what an index page takes.
LONG_KEY = "string_agg(md5(i::text), '') FROM generate_series(1, 500) AS i"


@pytest.mark.parametrize(
    ("statement", "parameters", "error"),
    [
        ("INSERT INTO view_param (name) VALUES (%s)", ["a\x00b"], BadDataError),
        ("INSERT INTO view_param (name) VALUES (%b)", ["a\x00b"], BadDataError),
        ("INSERT INTO view_param (name) VALUES (%s)", ["\ud800"], BadDataError),
        (
            "INSERT INTO view_param (name) SELECT * FROM unnest(%b::text[])",
            [["\ud800"]],
            BadDataError,
        ),
        ("INSERT INTO view_param (name) VALUES ('whats_hot_interval')", [], RowExistsError),
        ("INSERT INTO view_param (name) VALUES (NULL)", [], BadDataError),
        (f"INSERT INTO view_param (name) SELECT {LONG_KEY}", [], BadDataError),
        ("SELECT 1 / 0", [], BadDataError),
        ("SELECT * FROM nothing", [], SchemaMismatchError),
        ("SELECT nothing FROM post", [], SchemaMismatchError),
        ("DO $$ BEGIN RAISE SQLSTATE '25006'; END $$", [], DatabaseUnavailableError),
        ("SELEKT", [], DatabaseError),
        ("DO $$ BEGIN RAISE SQLSTATE '53300'; END $$", [], DatabaseUnavailableError),
        ("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$", [], TransactionConflictError),
    ],
)
def test_error_classes(
    schema_database: str, statement: str, parameters: list[object], error: type[DatabaseError]
) -> None:
    with Database.connect(schema_database, name="test") as database:
        with pytest.raises(DatabaseError) as caught:
            database.execute(statement, parameters)
        assert type(caught.value) is error
        assert database.query("SELECT 1") == [(1,)]


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("25006", "a standby is behind database_url"),
        ("26000", "a pooler mixes up"),
        ("42P05", "a pooler mixes up"),
        ("53300", "raise max_connections"),
    ],
)
def test_an_error_says_what_to_do(schema_database: str, code: str, hint: str) -> None:
    with Database.connect(schema_database, name="test") as database:
        with pytest.raises(DatabaseError, match=hint) as caught:
            database.execute(f"DO $$ BEGIN RAISE SQLSTATE '{code}'; END $$")
        assert caught.value.reconnect


def test_the_server_has_no_connection_left(schema_database: str) -> None:
    execute(schema_database, "CREATE ROLE limited LOGIN CONNECTION LIMIT 0")
    try:
        with pytest.raises(DatabaseUnavailableError, match="too many connections") as raised:
            Database.connect(schema_database.replace("postgres@", "limited@"), name="test")
        assert raised.value.finding == "database_connections"
        assert "CONNECTION LIMIT" in str(raised.value)
    finally:
        execute(schema_database, "DROP ROLE limited")


def test_a_lock_that_stays_taken_is_a_conflict(schema_database: str) -> None:
    with (
        Database.connect(schema_database, name="a") as holder,
        Database.connect(schema_database, name="b", lock_timeout_ms=50) as waiter,
        holder.transaction() as tx,
    ):
        tx.execute("LOCK TABLE view_param")
        with pytest.raises(TransactionConflictError, match="lock timeout") as raised:
            waiter.execute("DELETE FROM view_param")
        assert raised.value.finding == "database_locked"


def test_who_holds_a_lock_that_we_wait_for_is_named(
    schema_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsky_pipeline.indexer.upkeep.STORE_SECONDS", 0.0)
    with (
        psycopg.connect(schema_database, application_name="psql") as holder,
        Database.connect(schema_database, name="waits", lock_timeout_ms=20_000) as waiter,
        Database.connect(schema_database, name="looks") as database,
    ):
        assert blockers(database) == []
        holder.execute("LOCK TABLE bsky.view_param IN ACCESS EXCLUSIVE MODE /* \x1b[2J */")
        waiting = threading.Thread(target=waiter.execute, args=("DELETE FROM view_param",))
        waiting.start()
        while not (found := blockers(database)):
            time.sleep(0.02)
        holder.rollback()
        waiting.join()
        (text,) = found
        assert text.startswith("1 statement waits")
        assert f"pid {holder.info.backend_pid} (postgres, psql, idle in transaction)" in text
        assert "LOCK TABLE bsky.view_param IN ACCESS EXCLUSIVE MODE" in text
        assert "\x1b" not in text
        assert blockers(database) == []


def test_a_role_without_rights_learns_the_process_that_blocks_it(
    schema_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsky_pipeline.indexer.upkeep.STORE_SECONDS", 0.0)
    execute(schema_database, "CREATE ROLE plain LOGIN")
    try:
        execute(schema_database, "GRANT USAGE ON SCHEMA bsky TO plain")
        execute(schema_database, "GRANT SELECT, DELETE ON bsky.view_param TO plain")
        url = schema_database.replace("postgres@", "plain@")
        with (
            psycopg.connect(schema_database) as holder,
            Database.connect(url, name="waits", lock_timeout_ms=20_000) as waiter,
            Database.connect(url, name="looks") as database,
        ):
            holder.execute("LOCK TABLE bsky.view_param")
            waiting = threading.Thread(target=waiter.execute, args=("DELETE FROM view_param",))
            waiting.start()
            while not (found := blockers(database)):
                time.sleep(0.02)
            holder.rollback()
            waiting.join()
            assert f"pid {holder.info.backend_pid} (postgres" in found[0]
    finally:
        execute(schema_database, "DROP OWNED BY plain")
        execute(schema_database, "DROP ROLE plain")


def test_a_prepared_statement_whose_table_was_changed_is_planned_anew(
    schema_database: str,
) -> None:
    """In a new session; the data of the statement is not at fault."""

    def read(database: Database) -> int:
        return sum(database.execute("SELECT name FROM scratch WHERE name < %s", ["b"])
                   for _ in range(9))  # fmt: skip

    link = Link(partial(Database.connect, schema_database, name="test"), purpose="test")
    with closing(link):
        execute(schema_database, "CREATE TABLE bsky.scratch (name varchar)")
        link.act(read)
        execute(schema_database, "ALTER TABLE bsky.scratch ALTER COLUMN name TYPE text")
        with pytest.raises(SchemaMismatchError, match="cached plan") as raised:
            link.act(read)
        assert raised.value.retryable
        assert not raised.value.follows_data
        assert link.act(read) == 0


def test_a_connection_lost_at_commit_is_unavailable(schema_database: str) -> None:
    with Database.connect(schema_database, name="victim") as database:

        def commit() -> None:
            with database.transaction() as tx:
                (pid,) = tx.query("SELECT pg_backend_pid()")[0]
                execute(schema_database, f"SELECT pg_terminate_backend({pid}, 10000)")

        with pytest.raises(DatabaseUnavailableError):
            commit()


@pytest.mark.parametrize(
    "url", ["postgresql://user:geheim@[x/db", "host=x password=geheim'", "mysql://u:geheim@h/d"]
)
def test_a_wrong_url_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        Database.connect(url, name="test")
    assert "geheim" not in "".join(traceback.format_exception(caught.value))


def test_a_value_that_the_library_cannot_read_is_an_error_of_the_database(
    schema_database: str,
) -> None:
    with Database.connect(schema_database, name="test") as database:
        database.execute("SET datestyle TO 'SQL, DMY'")  # as no session of ours has it
        with pytest.raises(DatabaseError, match="DateStyle") as caught:
            database.query("SELECT now()")
        assert type(caught.value) is DatabaseError
        assert caught.value.retryable


def test_of_several_hosts_the_one_that_can_write_is_used() -> None:
    several = _connection_string("postgresql://h1,h2:5433/d", "test")
    assert "target_session_attrs=read-write" in several
    assert "target_session_attrs" not in _connection_string("postgresql://h1/d", "test")


def test_the_schema_name_is_checked(schema_database: str) -> None:
    with pytest.raises(ValueError, match="letters"):
        Database.connect(schema_database, schema='a"; DROP', name="test")


def test_a_timeout_is_a_conflict(schema_database: str) -> None:
    database = Database.connect(schema_database, name="test", statement_timeout_ms=50)
    with pytest.raises(TransactionConflictError):
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
        except TransactionConflictError:
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
    with pytest.raises(DatabaseUnavailableError):
        database.query("SELECT 1")
    with pytest.raises(DatabaseUnavailableError):
        database.query("SELECT 1")
    database.close()


@pytest.mark.parametrize("how", ["closed by the server", "timed out", "cut on the way"])
def test_an_idle_connection_that_was_closed_is_replaced(schema_database: str, how: str) -> None:
    parts = conninfo_to_dict(schema_database)
    with contextlib.ExitStack() as stack:
        target = f"unix://{parts['host']}/.s.PGSQL.{parts.get('port', 5432)}"
        proxies = [UnreliableProxy(target), stack.enter_context(UnreliableProxy(target))]
        urls = [
            f"postgresql://{parts['user']}@{proxy.url.rpartition('/')[2]}/{parts['dbname']}"
            for proxy in proxies
        ]

        def open_database() -> Database:
            return Database.connect(urls.pop(0), name="test")

        link = Link(open_database, purpose="test")
        stack.callback(link.close)
        with proxies[0]:
            pid = link.act(_backend)
            first = link.act(lambda database: database)
            assert link.act(_backend) == pid
            if how == "timed out":
                link.act(lambda database: database.execute("SET idle_session_timeout TO 1"))
            elif how == "closed by the server":
                execute(schema_database, f"SELECT pg_terminate_backend({pid}, 10000)")
            else:
                proxies[0].__exit__()
            deadline = time.monotonic() + 30
            while not first.has_ended and time.monotonic() < deadline:
                time.sleep(0.01)
            assert link.act(_backend) != pid  # without an error


def _backend(database: Database) -> int:
    ((pid,),) = database.query("SELECT pg_backend_pid()")
    return int(pid)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(DatabaseUnavailableError):
        Database.connect("postgresql://127.0.0.1:1/none", name="test")


def test_a_database_that_is_not_there_is_said_plainly(schema_database: str) -> None:
    with pytest.raises(DatabaseError, match="does not exist"):
        Database.connect(other_database(schema_database, "missing"), name="test")


@pytest.mark.parametrize("moment", ["query", "begin", "commit", "copy"])
def test_an_answer_that_never_comes_is_a_lost_connection(
    schema_database: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """As where packets vanish behind a proxy that keeps our side open."""
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.0)
    parts = conninfo_to_dict(schema_database)
    with UnreliableProxy(f"unix://{parts['host']}/.s.PGSQL.{parts.get('port', 5432)}") as proxy:
        port = proxy.url.rpartition(":")[2]
        url = f"postgresql://{parts['user']}@127.0.0.1:{port}/{parts['dbname']}"
        with Database.connect(url, name="test", statement_timeout_ms=500) as database:
            transaction = database.transaction()
            if moment in ("commit", "copy"):
                tx = transaction.__enter__()
                tx.query("SELECT 1")
            proxy.answering.clear()
            copy = "COPY view_param (name) FROM STDIN (FORMAT BINARY)"
            waits: dict[str, Callable[[], object]] = {
                "query": lambda: database.query("SELECT 1"),
                "begin": transaction.__enter__,
                "commit": lambda: transaction.__exit__(None, None, None),
                "copy": lambda: tx.copy_in(copy, ["text"], [("x",)]),
            }
            with pytest.raises(DatabaseUnavailableError):
                waits[moment]()
        with Database.connect(schema_database, name="test") as direct:
            assert direct.query("SELECT 1") == [(1,)]


def test_rows_that_a_policy_hides_are_an_error_and_not_missing(schema_database: str) -> None:
    execute(schema_database, "CREATE ROLE tenant LOGIN")
    execute(schema_database, "GRANT USAGE ON SCHEMA bsky TO tenant")
    execute(schema_database, "GRANT SELECT, INSERT, DELETE ON bsky.view_param TO tenant")
    execute(schema_database, "INSERT INTO bsky.view_param (name) VALUES ('row')")
    try:
        execute(schema_database, "ALTER TABLE bsky.view_param ENABLE ROW LEVEL SECURITY")
        execute(schema_database, "CREATE POLICY p ON bsky.view_param FOR INSERT WITH CHECK (true)")
        url = schema_database.replace("postgres@", "tenant@")
        with Database.connect(url, name="test") as database:
            for statement in ("DELETE FROM view_param", "SELECT * FROM view_param"):
                with pytest.raises(DatabaseError, match="BYPASSRLS") as caught:
                    database.query(statement + (" RETURNING 1" if "DELETE" in statement else ""))
                assert not caught.value.follows_data  # it is waited for, no entry is refused
            with pytest.raises(DatabaseError, match="BYPASSRLS"), database.transaction() as tx:
                tx.copy_in("COPY view_param (name) FROM STDIN (FORMAT BINARY)", ["text"], [("x",)])
    finally:
        execute(schema_database, "ALTER TABLE bsky.view_param DISABLE ROW LEVEL SECURITY")
        execute(schema_database, "DROP POLICY p ON bsky.view_param")
        execute(schema_database, "DROP OWNED BY tenant; DROP ROLE tenant")
