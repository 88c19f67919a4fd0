"""Brings the rows of one repo exactly up to date with its signed tree, directly in PostgreSQL.

The order of the changes and why it is so stand in `repos/changes.py`. All of it goes in bounded
transactions and under the same rev gate as the workers use, so live events may go on being applied
meanwhile.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import trio

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.isolation import apply_isolated, retry_conflicts
from rsky_pipeline.indexer.accounts.actors import create_actors, lock_actors
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.values import Delete, Put
from rsky_pipeline.indexer.core.apply import apply_batch, apply_locked
from rsky_pipeline.indexer.core.batch import Applied
from rsky_pipeline.indexer.core.entries import Reading, now_text
from rsky_pipeline.operations.repo_readings import (
    closing_reading,
    deletion_reading,
    record_readings,
)
from rsky_pipeline.repos.changes import apply_repo
from rsky_pipeline.repos.repo import Repo, RepoPaths, list_paths
from rsky_pipeline.repos.stored import absent_paths, older_paths
from rsky_pipeline.runtime.threads import in_thread

_log = logging.getLogger(__name__)
BATCH_RECORDS = 1_000  # in one transaction
MOST_CONFLICTS = 20


@dataclass(slots=True)
class Indexed:
    """The effects of indexing a repo, in records."""

    did: str
    rev: str
    records: int = 0  # of collections that are indexed, in the tree
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # by reason
    kept: set[str] = field(default_factory=set)  # uris of refused ones; an older row may stand

    @property
    def unchanged(self) -> int:
        """Records whose rows were as they should be, or newer."""
        return self.records - self.inserted - self.updated - self.refused.total()

    def note(self, applied: Applied) -> None:
        """Add the counts of a batch."""
        self.inserted += applied.inserted
        self.updated += applied.updated
        self.deleted += applied.deleted


async def bring_up_to_date(
    database: Database, repo: Repo, collections: Mapping[str, Collection]
) -> Indexed:
    """Index the records of some collections of a verified repo.

    Repeating it changes nothing. Raises RepoError for an incomplete tree, before anything is
    written, DatabaseError, and StillChangingError.
    """
    thread = trio.CapacityLimiter(1)
    paths = await in_thread(list_paths, repo, limiter=thread)
    sink = _DatabaseSink(database, paths, collections, thread)
    await in_thread(sink.create_actor, limiter=thread)
    await apply_repo(paths, sink)
    return sink.done


class _DatabaseSink:
    """The rows of one repo; see `RepoSink`. Queries run in a thread, one at a time."""

    def __init__(
        self, database: Database, paths: RepoPaths, collections: Mapping[str, Collection],
        thread: trio.CapacityLimiter,
    ) -> None:  # fmt: skip
        self._database = database
        self._paths = paths
        self._commit = paths.repo.commit
        self._collections = collections
        self._thread = thread
        self._now = now_text()
        self.done = Indexed(self._commit.did, self._commit.rev)

    def create_actor(self) -> None:
        """Make the account's row; blocking."""
        with self._database.transaction() as tx:
            create_actors(tx, [self.done.did], {}, self._now)

    async def absent(self, after: str) -> list[str]:
        """Return those of collections that are indexed."""
        return await in_thread(self._absent, after, limiter=self._thread)

    async def delete(self, paths: Sequence[str]) -> None:
        """Delete, some in each transaction."""
        rest = iter(paths)
        while some := list(islice(rest, BATCH_RECORDS)):
            readings = [deletion_reading(self._commit, path, self._now) for path in some]
            await in_thread(self._write, readings, limiter=self._thread)

    async def put(self) -> None:
        """Put the wanted records, some in each transaction."""
        source = record_readings(self._paths, self._collections, self._now)
        while await in_thread(self._put_some, source, limiter=self._thread):
            pass

    async def close(self) -> bool:
        """Set rev and complete rev if no row is older than the tree."""
        return await in_thread(retry_conflicts, self._close, MOST_CONFLICTS, limiter=self._thread)

    def _absent(self, after: str) -> list[str]:
        while page := absent_paths(self._database, self._paths, after):
            if wanted := [path for path in page if self._is_wanted(path)]:
                return wanted
            after = page[-1]
        return []

    def _put_some(self, source: Iterator[tuple[str, Reading | None, str | None]]) -> bool:
        some = list(islice(source, BATCH_RECORDS))
        self.done.records += len(some)
        for path, _, reason in some:
            if reason is not None:
                self.done.refused[reason] += 1
                self.done.kept.add(self._uri(path))
        self._write([reading for _, reading, _ in some if reading is not None])
        return bool(some)

    def _write(self, readings: Sequence[Reading]) -> None:
        """Apply readings; count the records that PostgreSQL rejects."""

        def apply(part: Sequence[Reading]) -> None:
            attempt = lambda: apply_batch(self._database, part, self._collections)  # noqa: E731
            self.done.note(retry_conflicts(attempt, MOST_CONFLICTS))

        for culprit in apply_isolated(readings, apply):
            change = culprit.entry.change
            uri = change.uri if isinstance(change, Put | Delete) else ""
            extra = {"did": self.done.did, "uri": uri, "error": culprit.message}
            _log.warning("PostgreSQL refused a record", extra=extra)
            if isinstance(change, Put):
                self.done.refused[culprit.reason] += 1
                self.done.kept.add(uri)

    def _close(self) -> bool:
        did, rev = self.done.did, self.done.rev
        with self._database.transaction() as tx:
            lock_actors(tx, {did})
            older = (path for path in older_paths(tx, did, rev) if self._is_wanted(path))
            if {self._uri(path) for path in older} - self.done.kept:
                return False
            closing = [closing_reading(self._paths.repo, now_text())]
            apply_locked(tx, closing, self._collections)
            return True

    def _is_wanted(self, path: str) -> bool:
        """Return whether records at a path are indexed."""
        return path.partition("/")[0] in self._collections

    def _uri(self, path: str) -> str:
        return f"at://{self.done.did}/{path}"
