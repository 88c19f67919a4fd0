"""What pgbouncer does with our sessions: Debian's, without prepared statements, and newer ones."""

import threading
from collections.abc import Iterator

import psycopg
import pytest

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import BadDataError, DatabaseUnavailableError
from rsky_pipeline.database.schema import check, initialise, pending
from rsky_pipeline.database.server import advise
from rsky_pipeline.operations.verification.probe import probe_rev_guard
from tests.real.servers import USER, PostgresServer, Servers, servers
from tests.real.test_stores import POOLERS, newer_pgbouncer

pytestmark = pytest.mark.real

SETTINGS = "SELECT name, setting FROM pg_settings WHERE name !~ '^(application_name|pg_trgm)'"
STATEMENTS = "SELECT statement FROM pg_prepared_statements"


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Servers, PostgresServer]]:
    with servers() as found:
        server = found.postgres()
        initialise(server.url(USER))
        yield found, server


@pytest.fixture(params=POOLERS)
def pooler(
    started: tuple[Servers, PostgresServer], request: pytest.FixtureRequest
) -> tuple[str, bool]:
    """The URL of a pgbouncer with three sessions, and whether it keeps prepared statements."""
    real, server = started
    newer, options = POOLERS[request.param]
    binary = newer_pgbouncer() if newer else None
    port = real.pgbouncer(server, *options, binary=binary, size=3).port
    return server.url(USER, port=port), request.param.endswith("with_prepared_statements")


def strangers(url: str) -> list[list[tuple[object, ...]]]:
    """Return what other clients find in each session of the pool."""
    connections = [psycopg.connect(url, autocommit=True) for _ in range(3)]
    found = []
    for each in connections:  # open at the same time, so in different sessions
        each.prepare_threshold = None
        each.execute("BEGIN")
        rows = each.execute("SELECT pg_backend_pid()::text, ''").fetchall()
        rows += each.execute(SETTINGS).fetchall()
        rows += each.execute("SELECT current_setting('rsky_pipeline.session', true), ''").fetchall()
        found.append(rows)
    for each in connections:
        each.execute("COMMIT")
        each.close()
    return sorted(found, key=str)


def test_nothing_leaks_and_nothing_is_missing(pooler: tuple[str, bool]) -> None:
    url, prepares = pooler
    before = strangers(url)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with Database.connect(url, name=f"c{number}", by_key=True) as database:
                assert database.pooled
                for turn in range(30):
                    with database.transaction() as tx:
                        tx.execute(
                            "INSERT INTO view_param (name) VALUES (%s)", [f"{number} {turn}"]
                        )
                        for _ in range(number + 1):  # so that counters of statements differ
                            tx.query("SELECT name FROM view_param WHERE name = %s", [str(number)])
                    with pytest.raises(BadDataError):
                        database.query("SELECT 1 / 0")
                assert probe_rev_guard(database) == []
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert strangers(url) == before
    with Database.connect(url, name="test") as database, database.transaction() as tx:
        tx.execute("DELETE FROM view_param WHERE name ~ '^[0-9] '")
        statements = [text for (text,) in tx.query(STATEMENTS)]
        assert any("view_param" in text for text in statements) == prepares


def test_the_schema_is_compared_and_nothing_is_pending(pooler: tuple[str, bool]) -> None:
    url, prepares = pooler
    names = [item.name for item in advise(url)]
    assert ("max_prepared_statements" in names) == (not prepares)
    assert pending(url) == initialise(url) == []
    assert [item for item in check(url) if item.severity == "error"] == []


def test_a_new_schema_is_made_through_it(started: tuple[Servers, PostgresServer]) -> None:
    real, server = started
    server.execute(f"CREATE DATABASE other OWNER {USER}")
    url = server.url(USER, database="other", port=real.pgbouncer(server).port)
    assert initialise(url)
    assert initialise(url) == []


def test_statement_mode_is_refused_by_name(started: tuple[Servers, PostgresServer]) -> None:
    real, server = started
    port = real.pgbouncer(server, "pool_mode = statement").port
    with pytest.raises(DatabaseUnavailableError, match="set pool_mode = transaction"):
        Database.connect(server.url(USER, port=port), name="test")
