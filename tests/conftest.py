"""Fixtures that every test may use: real stores, started only when a test asks for one."""

import os
import signal
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from rsky_pipeline.configuration import advice
from rsky_pipeline.demo.processes import clean_environment
from tests import evidence, stores

# Tests start and stop pipelines: one that the shell is set up for must not be among them.
for name in os.environ.keys() - clean_environment().keys():
    del os.environ[name]

# Nor may they start out deaf, as all do that nohup or a shell starts in the background.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

stores.use_memory()

# A slow machine is no failure: tests assert what happens, never how long it takes.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the ends of the logs of a failed test, and where they are kept."""
    report = yield
    if report.failed:
        report.sections += evidence.sections()
    elif report.when == "teardown":
        evidence.forget()
    return report


@pytest.fixture(autouse=True)
def _no_configuration_is_advised() -> Iterator[None]:
    """Have messages name the commands of no configuration, whichever a test has called one with."""
    yield
    advice.choose({}, {})


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of the session's Valkey; use `clean_redis` for an empty one."""
    with stores.running_valkey() as url:
        yield url


@pytest.fixture
def clean_redis(redis_url: str) -> str:
    """The URL of the session's Valkey, emptied."""
    with stores.redis_client(redis_url) as client:
        client.flushall()
    return redis_url


@pytest.fixture(scope="session")
def database_server() -> Iterator[str]:
    """The URL of an unused database in the session's PostgreSQL."""
    with stores.running_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def schema_template(database_server: str) -> str:
    """The name of a database that holds the schema."""
    return stores.make_schema_template(database_server)


@pytest.fixture
def clean_database(database_server: str) -> Iterator[str]:
    """The URL of a new empty database."""
    with stores.fresh_database(database_server) as url:
        yield url


@pytest.fixture
def schema_database(database_server: str, schema_template: str) -> Iterator[str]:
    """The URL of a new database with the schema (`bsky` and `rsky_pipeline`)."""
    with stores.fresh_database(database_server, schema_template) as url:
        yield url
