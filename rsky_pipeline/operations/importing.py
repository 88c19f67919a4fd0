"""From the embedded stores to stores of one's own: everything is copied while nothing runs.

In: settings with `redis_url` and `database_url` of the new stores, and the embedded ones in
`data_dir`, which are started for the copy. Out: the new stores with the same contents. The embedded
ones stay as they are, so that the way back is to leave the URLs out again.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.copying import copy_database
from rsky_pipeline.embedded import guard, locations, postgres, valkey
from rsky_pipeline.embedded.errors import EmbeddedStoreError
from rsky_pipeline.embedded.program import StoreProgram
from rsky_pipeline.runtime.errors import UnavailableError, WorkerError
from rsky_pipeline.runtime.lock import acquire
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.copying import copy_keys

START_SECONDS = 300.0  # replays its log after a crash
STOP_SECONDS = 60.0


@dataclass(slots=True)
class ImportOutcome:
    """Rows by table, and keys by type."""

    rows: dict[str, int] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)


def import_stores(
    settings: Settings, *, replace_all: bool, tell: Callable[[str], None]
) -> ImportOutcome:
    """Copy the embedded stores into those of `settings`; one without a URL is left out.

    `settings` went through `resolve_directories` alone. Raises WorkerError, StoreError and
    DatabaseError; both copies are repeated with `replace_all`.
    """
    embedded = locations.store_urls(replace(settings, redis_url=None, database_url=None))
    data = locations.data_directory(settings)
    outcome = ImportOutcome()
    lock = acquire(data / "locks" / "stores.lock")
    if lock is None:
        raise WorkerError(f"the embedded stores in {data} run: `rsky-pipeline stop --drain` first")
    try:
        if settings.database_url and (data / "postgres" / "data").exists():
            tell("PostgreSQL")
            with _running(postgres.prepare, embedded):
                copied = copy_database(
                    embedded.database_url or "", settings.database_url, settings.database_schema,
                    replace=replace_all, tell=tell,
                )  # fmt: skip
            outcome.rows = {each.name: each.rows for each in copied}
        if settings.redis_url and (data / "valkey").exists():
            tell("Redis")
            with (
                _running(valkey.prepare, embedded),
                closing(connect(embedded.redis_url or "", name="import")) as source,
                closing(connect(settings.redis_url, name="import")) as target,
            ):
                outcome.keys = copy_keys(source, target, replace=replace_all, tell=tell)
    finally:
        lock.let_go()
    if not outcome.rows and not outcome.keys:
        raise WorkerError(f"there are no embedded stores in {data}")
    return outcome


@contextmanager
def _running(prepare: Callable[[Settings], StoreProgram], settings: Settings) -> Iterator[None]:
    """Run an embedded store; it ends with this process, however that ends."""
    try:
        program = prepare(settings)
    except EmbeddedStoreError as error:
        raise WorkerError(str(error)) from error
    read, write = os.pipe()
    process = program.start()
    watch = guard.arguments(
        pid=process.pid, liveness=read, stop_signal=program.stop_signal,
        locks=program.directory / "none", patience=0,
    )  # fmt: skip
    watcher = subprocess.Popen(watch, stdin=subprocess.DEVNULL, pass_fds=(read,), process_group=0)
    os.close(read)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not program.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                log = " | ".join(program.last_log_lines())
                raise UnavailableError(f"{program.name} does not start: {log}")
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(program.stop_signal)
        try:
            process.wait(STOP_SECONDS)
        finally:
            os.close(write)
            watcher.wait()
