"""One process of a load: tasks come in as lines, outcomes go out as lines.

A task is a list of files. The process ends when its input does, so that none is left behind by a
load that was killed; what it was writing then is finished or rolled back by PostgreSQL.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import IO, Any

from rsky_pipeline.configuration.selection import is_selected
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.core.entries import Reading, now_text
from rsky_pipeline.network.directory import Directory
from rsky_pipeline.network.http import HttpClient
from rsky_pipeline.operations.load import ledger
from rsky_pipeline.operations.load.cars import StoredRepo, read_repo
from rsky_pipeline.operations.load.files import CarFile
from rsky_pipeline.operations.load.floors import floors
from rsky_pipeline.operations.load.outcome import CURRENT, LOADED, LoadFailed, Outcome
from rsky_pipeline.operations.load.readings import (
    closing_reading,
    deletion_readings,
    record_readings,
)
from rsky_pipeline.operations.load.signatures import unproven
from rsky_pipeline.operations.load.writing import BATCH, Writer

_log = logging.getLogger(__name__)
STATEMENT_TIMEOUT_MS = 300_000  # large transactions on a busy server


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator chose; `time` stands in for the clock in tests."""

    verify: bool = True
    dry_run: bool = False
    max_car_bytes: int = 1024 * 1024 * 1024
    time: str | None = None


@dataclass(slots=True)
class _Work:
    """A repo on its way, and what will be said of it."""

    repo: StoredRepo
    outcome: Outcome


class Loader:
    """Loads tasks, one after the other."""

    def __init__(
        self,
        writer: Writer,
        collections: Mapping[str, Collection],
        selection: tuple[str, ...],
        directory: Directory | None,
        options: Options,
    ) -> None:
        self._writer = writer
        self._collections = collections
        self._selection = selection
        self._directory = directory
        self._options = options

    async def load(self, files: Sequence[CarFile]) -> list[Outcome]:
        """Load the files of a task; every one has an outcome, which is in the ledger then.

        Raises DatabaseError when PostgreSQL cannot be used.
        """
        outcomes: list[Outcome] = []
        works: list[_Work] = []
        for file in files:
            outcome = Outcome(file.path, file.size, file.mtime_ns)
            outcomes.append(outcome)
            repo = self._read(file, outcome)
            if repo is not None:
                works.append(_Work(repo, outcome))
        while works:
            # One account twice: the second file is looked at when the first is in the tables.
            firsts = list({work.repo.commit.did: work for work in reversed(works)}.values())[::-1]
            await self._load_distinct(firsts)
            chosen = {id(work) for work in firsts}
            works = [work for work in works if id(work) not in chosen]
        if not self._options.dry_run:
            self._writer.run(lambda database: ledger.note(database, outcomes))
        return outcomes

    def _read(self, file: CarFile, outcome: Outcome) -> StoredRepo | None:
        try:
            repo = read_repo(file.path, self._options.max_car_bytes)
        except LoadFailed as failure:
            outcome.fail(failure.reason, str(failure))
            return None
        except Exception as error:  # noqa: BLE001 - a file must not stop the others
            _log.exception("a file cannot be read", extra={"path": file.path})
            outcome.fail("internal_error", f"{type(error).__name__}: {error}")
            return None
        outcome.did, outcome.rev = repo.commit.did, repo.commit.rev
        return repo

    async def _load_distinct(self, works: list[_Work]) -> None:
        dids = [work.repo.commit.did for work in works]
        known = self._writer.run(lambda database: floors(database, dids))
        fresh: list[_Work] = []
        for work in works:
            if known.get(work.repo.commit.did, "") >= work.repo.commit.rev:
                work.outcome.status = CURRENT
            else:
                fresh.append(work)
        if self._directory is not None:
            failures = await unproven([work.repo.commit for work in fresh], self._directory)
            for work in fresh:
                failure = failures.get(work.repo.commit.did)
                if failure is not None:
                    work.outcome.fail(failure.reason, str(failure))
            fresh = [work for work in fresh if work.repo.commit.did not in failures]
        self._write(fresh)

    def _write(self, works: Sequence[_Work]) -> None:
        if not works:
            return
        outcomes = {work.repo.commit.did: work.outcome for work in works}
        stored = self._writer.stored(list(outcomes))
        batch: list[Reading] = []
        for work in works:
            for reading in self._readings(work, stored.get(work.repo.commit.did, {})):
                batch.append(reading)
                if len(batch) >= BATCH:
                    self._flush(batch, outcomes)
                    batch = []
                    if work.outcome.reason is not None:
                        break
        self._flush(batch, outcomes)

    def _readings(self, work: _Work, stored: Mapping[str, str | None]) -> Iterator[Reading]:
        repo, outcome = work.repo, work.outcome
        time = self._options.time or now_text()
        refused: Counter[str] = Counter()
        try:
            # First, so that what was deleted stays so if this is stopped in between.
            for reading in deletion_readings(repo, stored, self._collections, time):
                outcome.deletes += 1
                yield reading
            for reading in record_readings(repo, self._selection, self._collections, time, refused):
                outcome.records += reading.refused is None
                yield reading
            outcome.refused = dict(refused)
            outcome.status = LOADED  # which it is when its last batch is written
            yield closing_reading(repo, time)
        except Exception as error:  # noqa: BLE001 - as in `_read`
            _log.exception("a repo cannot be loaded", extra={"path": outcome.path})
            outcome.fail("internal_error", f"{type(error).__name__}: {error}")

    def _flush(self, batch: Sequence[Reading], outcomes: Mapping[str, Outcome]) -> None:
        if not batch or self._options.dry_run:
            return
        try:
            refused = self._writer.write(batch)
        except DatabaseError:
            raise
        except Exception as error:  # noqa: BLE001 - hits all of the batch: a defect of ours
            _log.exception("a batch cannot be written")
            for did in {reading.did for reading in batch}:
                outcomes[did].fail("internal_error", f"{type(error).__name__}: {error}")
            return
        for did, counts in refused.items():
            outcome = outcomes[did]
            outcome.records -= counts.total()
            outcome.refused = dict(Counter(outcome.refused) + counts)


async def serve(
    settings: Settings, options: Options, lines: IO[str], answer: Callable[[dict[str, Any]], None]
) -> None:
    """Load task after task until the input ends. Raises DatabaseError."""
    collections = {
        nsid: collection
        for nsid, collection in registry.load(settings.validation).items()
        if is_selected(nsid, settings.collections)
    }
    writer = Writer(partial(_open_database, settings), collections)
    async with HttpClient(allow_private=settings.allow_private_hosts) as http:
        directory = None
        if options.verify:
            directory = Directory(
                http, settings.plc_url, allow_private=settings.allow_private_hosts
            )
        loader = Loader(writer, collections, settings.collections, directory, options)
        try:
            # Nothing else runs in this process: a blocking read holds nobody up.
            while line := lines.readline():
                files = [CarFile(**item) for item in json.loads(line)]
                for outcome in await loader.load(files):
                    answer(asdict(outcome))
                answer({"done": True})
        finally:
            writer.close()


def _open_database(settings: Settings) -> Database:
    return Database.connect(
        settings.database_url or "", schema=settings.database_schema, name="load",
        statement_timeout_ms=STATEMENT_TIMEOUT_MS, lock_timeout_ms=60_000, by_key=True,
    )  # fmt: skip
