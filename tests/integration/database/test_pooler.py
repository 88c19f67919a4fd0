"""A pooler in transaction mode: each transaction may run in another session, which others share."""

import threading
from collections.abc import Iterator

import psycopg
import pytest

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import BadDataError, TransactionConflictError
from rsky_pipeline.database.schema import check, initialise, pending
from rsky_pipeline.database.server import advise
from tests.pooler import Pooler

# A library defines its own settings in the first session that uses it.
SETTINGS = """SELECT name, setting FROM pg_settings
WHERE name <> 'application_name' AND name !~ '^(pg_trgm|plpgsql)[.]'"""
MARK = "SELECT current_setting('rsky_pipeline.session', true)"
STATEMENTS = "SELECT name, statement FROM pg_prepared_statements"
OURS = ["search_path", "timezone", "datestyle", "statement_timeout", "lock_timeout",
        "enable_seqscan", "synchronous_commit", "transaction_isolation"]  # fmt: skip
SHOW = ", ".join(f"replace(current_setting('{name}'), '\"', '')" for name in OURS)
EXPECTED = (
    "bsky, rsky_pipeline, public",
    "UTC",
    "ISO, YMD",
    "1min",
    "15s",
    "off",
    "on",
    "read committed",
)


@pytest.fixture(params=[False, True], ids=["own-key", "backend's-key"])
def pooler(schema_database: str, request: pytest.FixtureRequest) -> Iterator[Pooler]:
    with Pooler(schema_database, announces_backend=request.param) as running:
        yield running


def strangers(pooler: Pooler) -> list[tuple[object, ...]]:
    """Return what another client finds in every session of the pooler."""
    found = []
    with psycopg.connect(pooler.url, autocommit=True) as other:
        other.prepare_threshold = None
        for _ in range(3):
            with other.transaction():
                found.append((other.execute("SELECT pg_backend_pid()").fetchall(),
                              sorted(other.execute(SETTINGS).fetchall()),
                              other.execute(MARK).fetchall(),
                              other.execute(STATEMENTS).fetchall()))  # fmt: skip
    return sorted(found)


def test_settings_hold_in_every_transaction_and_in_no_other(pooler: Pooler) -> None:
    before = strangers(pooler)
    assert len({str(pid) for pid, *_ in before}) == 3
    with Database.connect(pooler.url, name="test", by_key=True) as database:
        assert database.pooled
        sessions = set()
        for _ in range(12):  # statements that are repeated so often are prepared elsewhere
            pid, *found = database.query(f"SELECT pg_backend_pid(), {SHOW}")[0]
            assert tuple(found) == EXPECTED
            with database.transaction() as tx:
                assert tuple(tx.query(f"SELECT {SHOW}")[0]) == EXPECTED
                tx.query("SELECT %b::text[]", [["a", "b"]])
            sessions.add(pid)
        assert len(sessions) > 1
        assert strangers(pooler) == before
    assert strangers(pooler) == before


def test_a_pooler_with_new_sessions_is_recognised_by_what_it_forgets(schema_database: str) -> None:
    """The first transaction runs in the session that the client was told of."""
    with (
        Pooler(schema_database, announces_backend=True, opens_late=True) as pooler,
        Database.connect(pooler.url, name="test", by_key=True) as database,
    ):
        assert database.pooled
        for _ in range(6):
            assert tuple(database.query(f"SELECT {SHOW}")[0]) == EXPECTED
        changed = "SELECT name FROM pg_settings WHERE source = 'session'"
        with psycopg.connect(pooler.url, autocommit=True) as other:
            for _ in range(3):
                assert other.execute(changed, prepare=False).fetchall() == []


def test_a_pooler_of_one_new_session_is_recognised_by_the_process_id(schema_database: str) -> None:
    with (
        Pooler(schema_database, 1, opens_late=True) as pooler,
        Database.connect(pooler.url, name="test") as database,
    ):
        assert database.pooled
        with psycopg.connect(pooler.url, autocommit=True) as other:
            assert other.execute(MARK, prepare=False).fetchall() == [(None,)]


def test_a_session_of_its_own_keeps_settings_and_statements(schema_database: str) -> None:
    with Database.connect(schema_database, name="test", by_key=True) as database:
        assert not database.pooled
        for _ in range(6):
            assert tuple(database.query(f"SELECT {SHOW}")[0]) == EXPECTED
        assert len(database.query(STATEMENTS)) == 1


def test_statements_stay_prepared_after_a_rollback(schema_database: str) -> None:
    with Database.connect(schema_database, name="test") as database:
        for _ in range(6):
            with database.transaction() as tx:
                tx.query("SELECT %s::int", [1])
        prepared = database.query(STATEMENTS)
        with pytest.raises(BadDataError), database.transaction() as tx:
            tx.query("SELECT 1 / 0")
        assert len(prepared) == 1
        assert database.query(STATEMENTS) == prepared


def insert_and_fail(database: Database) -> None:
    with database.transaction() as tx:
        tx.execute("INSERT INTO view_param (name) VALUES ('x')")
        raise KeyError


def test_failures_leave_nothing_behind(pooler: Pooler) -> None:
    before = strangers(pooler)
    with Database.connect(pooler.url, name="test", lock_timeout_ms=50) as database:
        with pytest.raises(BadDataError):
            database.query("SELECT 1 / 0")
        with pytest.raises(KeyError):
            insert_and_fail(database)
        with (
            Database.connect(pooler.url, name="b") as holder,
            holder.transaction() as held,
        ):
            held.execute("LOCK TABLE view_param")
            with pytest.raises(TransactionConflictError):
                database.execute("DELETE FROM view_param")
        assert database.query("SELECT name FROM view_param WHERE name = 'x'") == []
        assert strangers(pooler) == before
    assert strangers(pooler) == before


def test_a_commit_is_durable_although_another_client_left_its_setting(pooler: Pooler) -> None:
    with (
        Database.connect(pooler.url, name="test") as database,
        psycopg.connect(pooler.url, autocommit=True) as other,
    ):
        for _ in range(3):
            other.execute("SET synchronous_commit TO off")
        for _ in range(3):
            assert database.query("SHOW synchronous_commit") == [("on",)]


@pytest.mark.parametrize(("value", "expected"), [("off", "on"), ("remote_write", "remote_write")])
def test_a_commit_is_durable_whatever_the_database_has(
    schema_database: str, value: str, expected: str
) -> None:
    with psycopg.connect(schema_database, autocommit=True) as other:
        name = other.info.dbname
        other.execute(f'ALTER DATABASE "{name}" SET synchronous_commit TO {value}'.encode())
    with Database.connect(schema_database, name="test") as database:
        assert database.query("SHOW synchronous_commit") == [(expected,)]
    with (
        Pooler(schema_database) as pooler,
        Database.connect(pooler.url, name="test") as database,
    ):
        assert database.query("SHOW synchronous_commit") == [(expected,)]


def test_clients_mixed_in_the_same_sessions_do_not_disturb_each_other(pooler: Pooler) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with Database.connect(pooler.url, name=f"c{number}", by_key=True) as database:
                for turn in range(20):
                    with database.transaction() as tx:
                        tx.execute(f"INSERT INTO view_param (name) VALUES ('{number} {turn}')")
                        for _ in range(number + 1):  # so that counters of statements differ
                            tx.query("SELECT name FROM view_param WHERE name = %s", [str(number)])
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    with Database.connect(pooler.url, name="test") as database:
        assert database.query("SELECT count(*) FROM view_param WHERE name ~ '^[0-9] '") == [(80,)]


def test_the_schema_is_made_and_compared(clean_database: str) -> None:
    with Pooler(clean_database) as pooler:
        before = strangers(pooler)
        results: list[list[str]] = []
        threads = [
            threading.Thread(target=lambda: results.append(initialise(pooler.url)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(map(bool, results)) == [False, True]
        assert pending(pooler.url) == []
        assert [item for item in check(pooler.url) if item.severity == "error"] == []
        assert advise(pooler.url)[-1].name == "max_prepared_statements"
        assert strangers(pooler) == before
