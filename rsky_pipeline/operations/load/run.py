"""A whole load: find files, skip finished ones, hand out the others, add up the outcomes."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.operations.load.files import CarFile, scan, tasks
from rsky_pipeline.operations.load.outcome import (
    FAILED,
    FileOutcome,
    LoadSummary,
    finished_before,
    note,
)
from rsky_pipeline.operations.load.pool import LoadPool
from rsky_pipeline.operations.load.worker import LoadOptions

LOOKUP_FILES = 1_000


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
        """Load everything. Raises DatabaseError, OSError and LoadStoppedError."""
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

            pool = LoadPool(settings, options, jobs, crashed)
            for outcome in pool.run(tasks(wanted)):
                self.summary.add(outcome)
                self.done_bytes += outcome.size
                self.summary.seconds = time.monotonic() - began
                on_progress(self)
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
