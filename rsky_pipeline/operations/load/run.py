"""A whole load: find files, skip finished ones, hand out the others, add up the outcomes."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.operations.load.initial import finish, postpone
from rsky_pipeline.operations.load.outcome import (
    FAILED,
    CarFile,
    FileOutcome,
    LoadSummary,
    finished_before,
    note,
)
from rsky_pipeline.operations.load.pool import LoadPool
from rsky_pipeline.operations.load.worker import LoadOptions

LOOKUP_FILES = 1_000
SUFFIX = ".car"
TASK_BYTES = 12 * 1024 * 1024  # of the files of one task, unless a single one is larger
TASK_FILES = 100


@dataclass(slots=True)
class BulkLoad:
    """The state of a load; `found` grows while the directory is read."""

    directory: Path
    retry_failed: bool = False
    found: int = 0
    found_bytes: int = 0
    done_bytes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # by status of an earlier run
    summary: LoadSummary = field(default_factory=LoadSummary)

    def run(
        self,
        settings: Settings,
        options: LoadOptions,
        jobs: int,
        on_progress: Callable[["BulkLoad"], None] = lambda _: None,
    ) -> None:
        """Load everything, into empty tables in the way of `initial`.

        Raises DatabaseError, OSError and LoadStoppedError.
        """
        began = time.monotonic()
        files = list(scan(self.directory))
        self.found, self.found_bytes = len(files), sum(file.size for file in files)
        with Database.connect(
            settings.database_url or "", schema=settings.database_schema, name="load"
        ) as database:
            wanted = list(self._wanted(database, files))

            def crashed(outcome: FileOutcome) -> None:
                if not options.dry_run:
                    with Database.connect(settings.database_url or "", name="load") as own:
                        note(own, [outcome])

            is_first = not options.dry_run and postpone(database)
            options = replace(options, counting=not is_first)
            pool = LoadPool(settings, options, jobs, crashed)
            for outcome in pool.run(tasks(wanted)):
                self.summary.add(outcome)
                self.done_bytes += outcome.size
                self.summary.seconds = time.monotonic() - began
                on_progress(self)
            if is_first:
                with _patient(settings) as patient:
                    finish(patient)
        self.summary.seconds = time.monotonic() - began

    def _wanted(self, database: Database, files: Sequence[CarFile]) -> Iterator[CarFile]:
        for start in range(0, len(files), LOOKUP_FILES):
            part = files[start : start + LOOKUP_FILES]
            finished = finished_before(database, part)
            for file in part:
                status = finished.get(file.path)
                if status is None or (status == FAILED and self.retry_failed):
                    yield file
                else:
                    self.skipped[status] += 1
                    self.done_bytes += file.size


def _patient(settings: Settings) -> Database:
    """Return a connection for statements that take as long as all rows are many."""
    return Database.connect(
        settings.database_url or "", schema=settings.database_schema, name="load",
        statement_timeout_ms=0, lock_timeout_ms=600_000,
    )  # fmt: skip


def scan(directory: Path) -> Iterator[CarFile]:
    """Yield all CAR files below a directory in the order of their paths. Raises OSError.

    Symbolic links to files are followed, links to directories are not.
    """
    with os.scandir(directory) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from scan(Path(entry.path))
        elif entry.name.endswith(SUFFIX) and entry.is_file():
            status = entry.stat()
            yield CarFile(os.path.abspath(entry.path), status.st_size, status.st_mtime_ns)


def tasks(files: Iterable[CarFile]) -> Iterator[list[CarFile]]:
    """Put files together, in their order, so that many small repos share their transactions."""
    together: list[CarFile] = []
    size = 0
    for file in files:
        if together and (size + file.size > TASK_BYTES or len(together) >= TASK_FILES):
            yield together
            together, size = [], 0
        together.append(file)
        size += file.size
    if together:
        yield together
