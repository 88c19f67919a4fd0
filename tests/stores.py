"""A Valkey and a PostgreSQL for a test session, started from the embedded wheels."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.embedded import guard, postgres, valkey
from rsky_pipeline.embedded.locations import resolve_directories
from rsky_pipeline.embedded.program import StoreProgram
from tests.evidence import kept_if_failed

START_TIMEOUT_SECONDS = 60.0
FAST_POSTGRES = {
    "shared_buffers": "128MB",
    "autovacuum": "off",
    "max_wal_size": "512MB",
}
TEMPLATE = "template_with_schema"
_numbers = itertools.count(1)


def use_memory() -> None:
    """Have this process make its temporary files in memory, where there is room.

    PostgreSQL copies hundreds of files for a test: there in a twentieth of the time.
    """
    memory, room = Path("/dev/shm"), 4 * 1024**3
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > room:
        tempfile.tempdir = str(memory)


def scratch_settings(directory: Path) -> Settings:
    """Return settings whose stores and run-time files are in this directory."""
    return resolve_directories(Settings(data_dir=directory))


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yield a new short-named directory; pytest's own are not passable for PostgreSQL's account."""
    directory = Path(tempfile.mkdtemp(prefix="rsky-test-"))
    try:
        with kept_if_failed(directory):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def running(program: StoreProgram) -> Iterator[StoreProgram]:
    """Run a store until the block ends."""
    process = program.start()
    end_watching = _guard(process.pid, program)
    try:
        wait_until_it_answers(program, process)
        yield program
    finally:
        process.send_signal(program.stop_signal)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            # SIGQUIT is PostgreSQL's immediate shutdown: unlike SIGKILL it ends its children too.
            process.send_signal(signal.SIGQUIT if program.name == "postgres" else signal.SIGKILL)
            process.wait(10)
        end_watching()


def _guard(pid: int, program: StoreProgram) -> Callable[[], None]:
    """Have the store ended also when the test session is killed; the result ends the watching."""
    read, write = os.pipe()
    command = guard.arguments(
        pid=pid,
        liveness=read,
        stop_signal=program.stop_signal,
        locks=program.directory / "no-locks",
        patience=0,
    )
    watcher = subprocess.Popen(command, pass_fds=(read,), process_group=0)
    os.close(read)

    def end() -> None:
        os.close(write)
        watcher.wait()

    return end


def wait_until_it_answers(program: StoreProgram, process: "subprocess.Popen[bytes]") -> None:
    """Block until the store takes commands; raises RuntimeError with the end of its log."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not program.answers():
        if process.poll() is not None or time.monotonic() > deadline:
            log = "\n".join(program.last_log_lines(20))
            raise RuntimeError(f"{program.name} did not start ({process.poll()}):\n{log}")
        time.sleep(0.02)


@contextlib.contextmanager
def running_valkey() -> Iterator[str]:
    """Yield the URL of an own server: Valkey, or the one that RSKY_TEST_REDIS_SERVER names."""
    with scratch_directory() as folder:
        program = valkey.prepare(scratch_settings(folder))
        other = os.environ.get("RSKY_TEST_REDIS_SERVER")
        if other:
            program = replace(program, arguments=(other, *program.arguments[1:]))
        with running(program) as store:
            yield store.url


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """Yield the URL of an empty database in a PostgreSQL of its own.

    Where RSKY_TEST_DATABASE_URL names a database, tests make theirs beside that one.
    """
    other = os.environ.get("RSKY_TEST_DATABASE_URL")
    if other:
        yield other
        return
    with (
        scratch_directory() as folder,
        running(postgres.prepare(scratch_settings(folder), FAST_POSTGRES)) as store,
    ):
        yield store.url


def redis_client(url: str) -> "Redis":
    """Return a client that does not retry by itself."""
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=30)


def other_database(url: str, name: str) -> str:
    """Return the URL of another database on the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@contextlib.contextmanager
def fresh_database(url: str, template: str = "template0") -> Iterator[str]:
    """Create a database beside the one of `url`, yield its URL, and drop it."""
    name = f"test_{next(_numbers)}"
    execute(url, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    try:
        yield other_database(url, name)
    finally:
        execute(url, f"DROP DATABASE {name} WITH (FORCE)")


def execute(url: str, statement: str) -> None:
    """Run one statement outside of a transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def make_schema_template(url: str) -> str:
    """Create the database that `schema_database` copies; return its name."""
    from rsky_pipeline.database.schema import initialise  # most tests do without the schema

    execute(url, f"CREATE DATABASE {TEMPLATE} TEMPLATE template0")
    initialise(other_database(url, TEMPLATE), "bsky")
    return TEMPLATE
