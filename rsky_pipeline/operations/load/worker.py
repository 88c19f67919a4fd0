"""One process of a load: tasks come in as lines, outcomes go out as lines.

A task is a list of files. The process ends at the end of its input, so a killed load leaves no
process behind; PostgreSQL commits or rolls back the transaction in progress.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import IO, Any

import trio

from rsky_pipeline.atproto.commit import Commit
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.database.selection import load_selection
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.registry import SelectedCollections
from rsky_pipeline.indexer.collections.values import Put
from rsky_pipeline.indexer.core.entries import Reading, now_text
from rsky_pipeline.network.directory import (
    Directory,
    IdentityNotFoundError,
    IdentityUnavailableError,
)
from rsky_pipeline.network.http import HttpClient
from rsky_pipeline.operations.load.outcome import CURRENT, LOADED, CarFile, FileOutcome, note
from rsky_pipeline.operations.load.writing import BATCH_RECORDS, LoadWriter
from rsky_pipeline.operations.repo_readings import (
    closing_reading,
    deletion_reading,
    record_readings,
)
from rsky_pipeline.repos.blocks import Blocks
from rsky_pipeline.repos.changes import apply_repo
from rsky_pipeline.repos.repo import (
    BLOCKED,
    RepoError,
    RepoPaths,
    check_signature,
    read_car_file,
)
from rsky_pipeline.repos.stored import absent_paths, have_older, stored_revs
from rsky_pipeline.runtime.logging import ThrottledLog

_log = logging.getLogger(__name__)
_throttled = ThrottledLog(_log)
LOOKUPS = 16  # DID documents at once
LOOKUP_TRIES = 4
LOOKUP_PAUSE_SECONDS = 1.0
STATEMENT_TIMEOUT_MS = 300_000  # large transactions on a busy server


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Options of the command; `time` replaces the clock in tests."""

    verify: bool = True
    dry_run: bool = False
    max_car_bytes: int = 1024 * 1024 * 1024
    memory_bytes: int = 256 * 1024 * 1024  # for the blocks of one repo; a larger one is on disk
    counting: bool = True  # else counts are postponed (`initial`)
    time: str | None = None


class Loader:
    """Loads tasks, one after the other."""

    def __init__(
        self,
        writer: LoadWriter,
        collections: Mapping[str, Collection],
        directory: Directory | None,
        options: LoadOptions,
    ) -> None:
        self.collections = collections
        self._writer = writer
        self._directory = directory
        self._options = options
        self._batch: list[Reading] = []
        self._outcomes: dict[str, FileOutcome] = {}  # by DID, of the repos that go together

    async def load(self, files: Sequence[CarFile]) -> list[FileOutcome]:
        """Load the files of a task; every one has an outcome, which is in the table then.

        Raises DatabaseError when PostgreSQL cannot be used.
        """
        outcomes: list[FileOutcome] = []
        found: list[tuple[RepoPaths, FileOutcome]] = []
        for file in files:
            outcome = FileOutcome(file.path, file.size, file.mtime_ns)
            outcomes.append(outcome)
            paths = self._read(file, outcome)
            if paths is not None:
                found.append((paths, outcome))
        held = [paths.repo.blocks for paths, _ in found]
        while found:
            # One account twice: the second file is looked at when the first is in the tables.
            firsts: dict[str, tuple[RepoPaths, FileOutcome]] = {}
            later = []
            for paths, outcome in found:
                did = paths.repo.commit.did
                if did in firsts:
                    later.append((paths, outcome))
                else:
                    firsts[did] = (paths, outcome)
            await self._load_distinct(list(firsts.values()))
            found = later
        for blocks in held:
            if isinstance(blocks, Blocks):
                blocks.close()
        if not self._options.dry_run:
            self._writer.run(lambda database: note(database, outcomes))
        return outcomes

    def _read(self, file: CarFile, outcome: FileOutcome) -> RepoPaths | None:
        try:
            paths = read_car_file(
                file.path, self._options.max_car_bytes, self._options.memory_bytes
            )
        except RepoError as failure:
            outcome.fail(failure.reason, str(failure))
            return None
        except Exception as error:  # noqa: BLE001 - a file must not stop the others
            _log.exception("file cannot be read", extra={"path": file.path})
            outcome.fail("internal_error", f"{type(error).__name__}: {error}")
            return None
        outcome.did, outcome.rev = paths.repo.commit.did, paths.repo.commit.rev
        return paths

    async def _load_distinct(self, found: Sequence[tuple[RepoPaths, FileOutcome]]) -> None:
        """Load repos of different accounts: current? -> signature -> changes, in few batches."""
        dids = [paths.repo.commit.did for paths, _ in found]
        revs = self._writer.run(lambda database: stored_revs(database, dids))
        selection = self._writer.run(load_selection)
        fresh: list[tuple[RepoPaths, FileOutcome]] = []
        for (paths, outcome), stored in zip(found, revs, strict=True):
            if not selection.keeps(paths.repo.commit.did):
                outcome.fail(BLOCKED, "the account is blocked")
            elif (stored.complete or "") >= paths.repo.commit.rev:
                outcome.status = CURRENT
            else:
                fresh.append((paths, outcome))
        if self._directory is not None:
            await check_signatures(fresh, self._directory)
            fresh = [(paths, outcome) for paths, outcome in fresh if outcome.reason is None]
        if not fresh:
            return
        self._outcomes = {paths.repo.commit.did: outcome for paths, outcome in fresh}
        commits = [(paths.repo.commit.did, paths.repo.commit.rev) for paths, _ in fresh]
        older = self._writer.run(lambda database: have_older(database, commits))
        time = self._options.time or now_text()
        for (paths, outcome), has_older in zip(fresh, older, strict=True):
            sink = _LoadSink(self, paths, outcome, has_older, time)
            try:
                await apply_repo(paths, sink)
            except DatabaseError:
                raise
            except Exception as error:  # noqa: BLE001 - as in `_read`
                _log.exception("repo cannot be loaded", extra={"path": outcome.path})
                outcome.fail("internal_error", f"{type(error).__name__}: {error}")
        self._flush()
        self._delete_late(fresh, time)

    def _delete_late(self, found: Sequence[tuple[RepoPaths, FileOutcome]], time: str) -> None:
        """Delete older rows that an indexer stored between the look at the rows and the closing.

        From the complete rev on older states are refused, so that one more look is enough.
        """
        if self._options.dry_run:
            return
        loaded = [(paths, outcome) for paths, outcome in found if outcome.status == LOADED]
        revs = [(paths.repo.commit.did, paths.repo.commit.rev) for paths, _ in loaded]
        late = self._writer.run(lambda database: have_older(database, revs))
        for (paths, outcome), is_late in zip(loaded, late, strict=True):
            after = ""
            while is_late and (page := self.absent(paths, after)):
                after = page[-1]
                for path in page:
                    outcome.deletes += 1
                    self._batch.append(deletion_reading(paths.repo.commit, path, time))
                self._flush()

    def absent(self, paths: RepoPaths, after: str) -> list[str]:
        """Return one page of wanted paths after `after` that are older and not in the tree."""
        while page := self._writer.run(partial(_absent, paths, after)):
            if wanted := [path for path in page if path.partition("/")[0] in self.collections]:
                return wanted
            after = page[-1]
        return []

    def add(self, reading: Reading) -> None:
        """Write a reading with others."""
        self._batch.append(reading)
        if len(self._batch) >= BATCH_RECORDS:
            self._flush()

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        if not batch or self._options.dry_run:
            return
        for culprit in self._writer.write(batch):
            outcome, change = self._outcomes[culprit.entry.did], culprit.entry.change
            uri = change.uri if isinstance(change, Put) else ""
            _throttled.warning(
                "PostgreSQL refused a part of a repo", key=culprit.reason,
                did=outcome.did, uri=uri, error=culprit.message,
            )  # fmt: skip
            if isinstance(change, Put):
                outcome.records -= 1
                outcome.refused[culprit.reason] = outcome.refused.get(culprit.reason, 0) + 1
            else:  # its complete rev, or a deletion below it
                outcome.fail(culprit.reason, culprit.message)


def _absent(paths: RepoPaths, after: str, database: Database) -> list[str]:
    return absent_paths(database, paths, after)


class _LoadSink:
    """The rows of one repo among those of others; see `RepoSink`. Nothing here blocks a loop."""

    def __init__(
        self, loader: Loader, paths: RepoPaths, outcome: FileOutcome,
        has_older: bool, time: str,
    ) -> None:  # fmt: skip
        """`has_older`: the account has rows that are older than the file."""
        self._loader = loader
        self._paths = paths
        self._commit = paths.repo.commit
        self._outcome = outcome
        self._has_older = has_older
        self._time = time

    async def absent(self, after: str) -> list[str]:
        """Look at the rows of an account that has older ones, a page at a time."""
        return self._loader.absent(self._paths, after) if self._has_older else []

    async def delete(self, paths: Sequence[str]) -> None:
        """Delete rows."""
        self._outcome.deletes += len(paths)
        for path in paths:
            self._add(deletion_reading(self._commit, path, self._time))

    async def put(self) -> None:
        """Put the wanted records."""
        loader, outcome, add = self._loader, self._outcome, self._add
        refused: Counter[str] = Counter()
        source = record_readings(self._paths, loader.collections, self._time)
        for _, reading, reason in source:
            if reason is None:
                outcome.records += 1
            else:
                refused[reason] += 1
            if reading is not None:
                add(reading)
        outcome.refused = dict(Counter(outcome.refused) + refused)

    async def close(self) -> bool:
        """Set the complete rev in the last transaction of the repo, unless a part was refused."""
        if self._outcome.reason is None:
            self._outcome.status = LOADED  # which it is when that is written
            self._add(closing_reading(self._paths.repo, self._time))
        return True

    def _add(self, reading: Reading) -> None:
        self._loader.add(reading)


async def check_signatures(
    found: Sequence[tuple[RepoPaths, FileOutcome]], directory: Directory
) -> None:
    """Note at each repo that is not signed with its account's key why it cannot be loaded.

    A directory that gives no answer is asked again a few times.
    """
    limit = trio.CapacityLimiter(LOOKUPS)

    async def check(commit: Commit, outcome: FileOutcome) -> None:
        async with limit:
            try:
                look_up = partial(_document, directory, commit.did)
                await check_signature(commit, await look_up(False), look_up)
            except RepoError as failure:
                outcome.fail(failure.reason, str(failure))
            except Exception as error:  # noqa: BLE001 - a document must not stop the others
                _log.exception("signature cannot be checked", extra={"did": commit.did})
                outcome.fail("internal_error", f"{type(error).__name__}: {error}")

    async with trio.open_nursery() as nursery:
        for paths, outcome in found:
            nursery.start_soon(check, paths.repo.commit, outcome)


async def _document(directory: Directory, did: str, force: bool) -> DidDocument:
    for attempt in range(1, LOOKUP_TRIES + 1):
        try:
            return await directory.resolve(did, force)
        except IdentityNotFoundError as error:
            raise RepoError("permanent", "did_not_found", str(error)) from error
        except IdentityUnavailableError as error:
            if attempt == LOOKUP_TRIES:
                raise RepoError("transient", "did_unavailable", str(error)) from error
        await trio.sleep(attempt * LOOKUP_PAUSE_SECONDS)
    raise AssertionError("not reached")


async def serve(
    settings: Settings,
    options: LoadOptions,
    lines: IO[str],
    answer: Callable[[dict[str, Any]], None],
) -> None:
    """Load task after task until the input ends. Raises DatabaseError."""
    with _open_database(settings) as database:
        blocked = load_selection(database).collections
    collections = SelectedCollections(settings.collections, settings.validation, blocked)
    writer = LoadWriter(partial(_open_database, settings), collections, counting=options.counting)
    async with HttpClient(allow_private=settings.allow_private_hosts, proxy=settings.proxy) as http:
        directory = None
        if options.verify:
            directory = Directory(
                http, settings.plc_url, allow_private=settings.allow_private_hosts
            )
        loader = Loader(writer, collections, directory, options)
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
