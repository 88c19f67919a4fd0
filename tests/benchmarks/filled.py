"""A database with as many rows as a real one, filled once and kept between runs.

What an event costs depends on how many pages it touches for the first time since a checkpoint, and
on how many of them are in memory: a database of a thousand accounts shows neither.
"""

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psycopg

from rsky_pipeline.configuration.load import load
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.sources import PREFIX
from rsky_pipeline.database import schema
from rsky_pipeline.database.connection import Database
from rsky_pipeline.demo.processes import PipelineProcess, clean_environment
from rsky_pipeline.embedded import postgres
from rsky_pipeline.embedded.locations import resolve_directories, run_directory, store_urls
from rsky_pipeline.indexer.collections.registry import SelectedCollections
from rsky_pipeline.indexer.core.entries import read_entry
from rsky_pipeline.operations.load.writing import BATCH_RECORDS, LoadWriter
from rsky_pipeline.streams.event import EVENT_FIELD
from rsky_pipeline.supervisor import client
from rsky_pipeline.supervisor.errors import NotRunningError
from tests import stores
from tests.benchmarks import traffic
from tests.benchmarks.processes import cpu_seconds
from tests.benchmarks.traffic import Traffic

ROWS = int(os.environ.get("BENCH_ROWS", "1000000"))
FOLDER = Path(os.environ.get("BENCH_FOLDER") or Path(tempfile.gettempdir()) / "rsky-bench")
ROWS_AN_ACCOUNT = 5
LIVE_SHARE = 3  # one part in three came from a firehose, and notified
READY_SECONDS = 120.0
PARTS = 10  # of a filling, of each of which the cost is kept
_ACTORS = 'COPY actor (did, handle, "indexedAt") FROM STDIN'


@dataclass(slots=True)
class Filled:
    """Stores and an indexer on a large database; the next event has the number `next`."""

    traffic: Traffic
    settings: Settings
    process: PipelineProcess
    folder: Path

    @property
    def next(self) -> int:
        """Number of the first event that is not in the database."""
        return int((self.folder / "next").read_text())

    def advance(self, count: int) -> None:
        """Note that so many more events are in it."""
        (self.folder / "next").write_text(str(self.next + count))

    @property
    def fill_costs(self) -> list[float]:
        """Microseconds of all processes a record, in each tenth of the filling."""
        found: list[float] = json.loads((self.folder / "fill.json").read_text())
        return found

    def connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        """Return a connection of the measuring program."""
        return psycopg.connect(self.settings.database_url or "", autocommit=True)


@contextlib.contextmanager
def filled(rows: int = ROWS) -> Iterator[Filled]:
    """Start stores and an indexer on a database of so many records, which is made if missing."""
    scripts = Path(schema.__file__).parent.glob("*.sql")
    marks = (Path(traffic.__file__), *sorted(scripts))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in marks)).hexdigest()[:8]
    folder = FOLDER / f"{rows}-{digest}"
    network = Traffic(max(rows // ROWS_AN_ACCOUNT, 1_000))
    own = {
        "DATA_DIR": str(folder), "RUN_DIR": str(folder / "run"),
        "CONFIG": str(folder / "none.toml"), "PLC_URL": "http://127.0.0.1:9",
        "INDEXER_METRICS_PORT": "0", "SUPERVISOR_METRICS_PORT": "0",
    }  # fmt: skip
    environ = clean_environment() | {f"{PREFIX}{name}": value for name, value in own.items()}
    if not (folder / "next").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "none.toml").touch()
        _fill(folder, environ, network, rows)
    settings = store_urls(resolve_directories(load(None, environ, {}).settings))
    process = PipelineProcess(["run", "--role", "indexer"], environ, folder / "pipeline.log")
    try:
        _wait_until_ready(process, settings)
        yield Filled(network, settings, process, folder)
    finally:
        process.end()


def _wait_until_ready(process: PipelineProcess, settings: Settings) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        found: list[client.Supervisor] = []
        with contextlib.suppress(NotRunningError):
            found = client.find(run_directory(settings))
        items = [item for each in found for item in each.status["processes"]]
        if any(item["state"] == "ready" for item in items if item["role"] == "indexer"):
            return
        if not process.is_running or time.monotonic() > deadline:
            raise process.failure("is not ready")
        time.sleep(0.3)


def _fill(folder: Path, environ: dict[str, str], network: Traffic, rows: int) -> None:
    """Write rows with the loader's own writer, by as many processes as there are cores."""
    settings = store_urls(resolve_directories(load(None, environ, {}).settings))
    with stores.running(postgres.prepare(settings)) as server:
        schema.initialise(server.url, settings.database_schema)
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("SET search_path TO bsky")
            with connection.cursor().copy(_ACTORS) as copy:
                for account in range(network.accounts):
                    handle = f"a{account}.bench.test"
                    copy.write_row((network.did(account), handle, "2025-01-01T00:00:00.000Z"))
            costs = _write_all(server.url, network.accounts, rows)
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
    (folder / "fill.json").write_text(json.dumps(costs))
    (folder / "next").write_text(str(rows))


def _write_all(url: str, accounts: int, rows: int) -> list[float]:
    """Write all batches; return the microseconds of all processes a record in each tenth."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(os.cpu_count()) as pool:
        parts = range(0, rows, BATCH_RECORDS)
        began, costs = time.monotonic(), list[float]()
        before, since = sum(cpu_seconds([os.getpid()]).values()), 0
        for done, _ in enumerate(pool.imap(partial(_write, url, accounts, rows), parts), 1):
            if done % 10 == 0 or done == len(parts):
                rate = done * BATCH_RECORDS / (time.monotonic() - began)
                print(f"\rfilling: {done / len(parts):.0%}, {rate:,.0f} records/s",
                      end="", file=sys.stderr, flush=True)  # fmt: skip
            if done * PARTS // len(parts) > len(costs):
                used = sum(cpu_seconds([os.getpid()]).values())
                costs.append((used - before) / ((done - since) * BATCH_RECORDS) * 1e6)
                before, since = used, done
        print(file=sys.stderr)
    return costs


def _write(url: str, accounts: int, rows: int, first: int) -> None:
    """Write one batch of events, in a process of a pool."""
    writer, collections, network = _opened(url, accounts)
    is_old = first < rows - rows // LIVE_SHARE
    count = min(BATCH_RECORDS, rows - first)
    events = network.events(first, count, historical=is_old)
    readings = [read_entry({EVENT_FIELD: event}, collections) for event in events]
    if refused := [one.refused for one in readings if one.refused]:
        raise AssertionError(f"events that cannot be indexed: {refused[:3]}")
    if culprits := writer.write(readings):
        raise AssertionError(f"PostgreSQL refuses {culprits[0]}")


@functools.cache
def _opened(url: str, accounts: int) -> tuple[LoadWriter, SelectedCollections, Traffic]:
    """Return the writer of this process, and its copy of the network."""
    collections = SelectedCollections(Settings().collections)
    connect = partial(Database.connect, url, schema="bsky", name="bench", by_key=True)
    return LoadWriter(connect, collections), collections, Traffic(accounts)
