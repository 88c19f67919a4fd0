"""Brings the rows of one repo exactly up to date with its signed tree, directly in PostgreSQL.

Every record of the tree is put with the rev of its commit, as history; what the tree does not hold
is deleted with that rev; then the floor of the repo is set. All of it in bounded transactions and
under the same rev gate as the workers use, so live events may go on being applied meanwhile.
"""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.backfiller.reconcile import absent
from rsky_pipeline.backfiller.unpack import Paths, Repo, creates, list_paths
from rsky_pipeline.configuration.selection import path_prefixes
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import TransactionConflict
from rsky_pipeline.database.isolation import apply_isolated
from rsky_pipeline.indexer.accounts.actors import create_actors, lock_actors
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.values import Delete, Put
from rsky_pipeline.indexer.core.apply import apply_batch, apply_locked
from rsky_pipeline.indexer.core.batch import Applied
from rsky_pipeline.indexer.core.entries import Reading, RepoRev, now_text, read_entry
from rsky_pipeline.streams.event import EVENT_FIELD

Result = TypeVar("Result")
_log = logging.getLogger(__name__)
RECORDS = 1_000  # in one transaction
DELETIONS = 1_000  # in one transaction
PAGE = 10_000  # rows read at once
ROUNDS = 5  # tries to reach a moment in which nothing older than the tree is left
MAX_CONFLICTS = 20

# The order of bytes is that of the tree.
_OLDER = """
SELECT uri FROM record
WHERE did = %s AND (rev IS NULL OR rev COLLATE "C" < %s) AND uri COLLATE "C" > %s
ORDER BY uri COLLATE "C" LIMIT %s
"""
_LEFT = 'SELECT uri FROM record WHERE did = %s AND (rev IS NULL OR rev COLLATE "C" < %s)'


class StillChanging(Exception):
    """Older states kept arriving while the repo was brought up to date: try again."""


@dataclass(slots=True)
class Indexed:
    """What bringing a repo up to date did, in records."""

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
        """Add what a batch did."""
        self.inserted += applied.inserted
        self.updated += applied.updated
        self.deleted += applied.deleted


def bring_up_to_date(
    database: Database,
    repo: Repo,
    collections: Mapping[str, Collection],
    selection: tuple[str, ...],
) -> Indexed:
    """Index a verified repo; `selection` is the setting `collections`.

    Blocking. Repeating it changes nothing. Raises RepoFailed for an incomplete tree, before
    anything is written, DatabaseError, and StillChanging.
    """
    paths = list_paths(repo)
    done = Indexed(repo.commit.did, repo.commit.rev)
    wanted = Wanted(done.did, selection, collections)
    now = now_text()
    with database.transaction() as tx:
        create_actors(tx, [done.did], {}, now)
    for batch in _batches(wanted.of(paths)):
        done.records += len(batch)
        _put(database, repo, batch, wanted, now, done)
    for _ in range(ROUNDS):
        _delete_absent(database, paths, wanted, done)
        if _close(database, repo, wanted, done):
            return done
    raise StillChanging(f"older states of {done.did} keep arriving")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records of a repo are indexed."""

    did: str
    selection: tuple[str, ...]
    collections: Mapping[str, Collection]

    def of(self, paths: Iterable[tuple[str, Cid]]) -> Iterator[tuple[str, Cid]]:
        """Yield those of the paths that are wanted."""
        return (item for item in paths if self.has(item[0]))

    def has(self, path: str) -> bool:
        """Tell whether records at a path are indexed."""
        prefixes = path_prefixes(self.selection)
        return path.startswith(prefixes) and path.partition("/")[0] in self.collections

    def uri(self, path: str) -> str:
        """Return the uri of a record."""
        return f"at://{self.did}/{path}"

    def path(self, uri: str) -> str:
        """Return the path of a record's uri."""
        return uri.removeprefix(f"at://{self.did}/")


def _batches(items: Iterator[tuple[str, Cid]]) -> Iterator[list[tuple[str, Cid]]]:
    while batch := list(islice(items, RECORDS)):
        yield batch


def _put(
    database: Database, repo: Repo, batch: Sequence[tuple[str, Cid]], wanted: Wanted, now: str,
    done: Indexed,
) -> None:  # fmt: skip
    entries = [
        entry for chunk in creates(repo, batch, wanted.selection, now) for entry in chunk.entries
    ]
    readings = [
        read_entry({EVENT_FIELD: entry.payload}, wanted.collections, now) for entry in entries
    ]
    refused = Counter(item.refused.reason for item in readings if item.refused is not None)
    refused["unreadable"] += len(batch) - len(entries)
    refused += _write(database, readings, wanted.collections, done)
    done.refused += refused
    if refused:
        stands = {item.change.uri for item in readings if isinstance(item.change, Put)}
        done.kept.update({wanted.uri(path) for path, _ in batch} - stands)


def _write(
    database: Database, readings: Sequence[Reading], collections: Mapping[str, Collection],
    done: Indexed,
) -> Counter[str]:  # fmt: skip
    """Apply; return how many PostgreSQL refused, by reason."""

    def apply(part: Sequence[Reading]) -> None:
        done.note(unconflicted(lambda: apply_batch(database, part, collections)))

    culprits = apply_isolated(readings, apply, source=lambda reading: reading.did)
    for culprit in culprits:
        change = culprit.entry.change
        uri = change.uri if isinstance(change, Put | Delete) else ""
        extra = {"did": done.did, "uri": uri, "error": culprit.message}
        _log.warning("PostgreSQL refused a record", extra=extra)
    done.kept.update(
        item.entry.change.uri for item in culprits if isinstance(item.entry.change, Put)
    )
    return Counter(item.reason for item in culprits)


def unconflicted(action: Callable[[], Result]) -> Result:
    """Do it again after a conflict with other writers. Raises the last TransactionConflict."""
    for attempt in range(1, MAX_CONFLICTS):
        try:
            return action()
        except TransactionConflict:
            time.sleep(random.uniform(0.0, 0.05 * attempt))
    return action()


def _delete_absent(database: Database, paths: Paths, wanted: Wanted, done: Indexed) -> None:
    """Delete rows that are older than the tree and not in it."""
    older = (path for path in map(wanted.path, _older(database, done)) if wanted.has(path))
    gone = absent(older, (path for path, _ in paths))
    while some := list(islice(gone, DELETIONS)):
        readings = [
            Reading("delete", done.did, "", path.partition("/")[0], historical=True,
                    change=Delete(wanted.uri(path), done.did, done.rev))
            for path in some
        ]  # fmt: skip
        _write(database, readings, wanted.collections, done)


def _older(database: Database, done: Indexed) -> Iterator[str]:
    last = ""
    while page := database.query(_OLDER, (done.did, done.rev, last, PAGE)):
        last = page[-1][0]
        yield from (row[0] for row in page)


def _close(database: Database, repo: Repo, wanted: Wanted, done: Indexed) -> bool:
    """Set rev and floor if no row is older than the tree; return whether it was so."""
    rev = RepoRev(done.did, str(repo.root), done.rev, complete=True)
    readings = [Reading("repo", done.did, now_text(), historical=True, change=rev)]

    def close() -> bool:
        with database.transaction() as tx:
            lock_actors(tx, {done.did})
            rows = tx.query(_LEFT, (done.did, done.rev))
            left = {row[0] for row in rows if wanted.has(wanted.path(row[0]))} - done.kept
            if not left:
                apply_locked(tx, readings, wanted.collections)
            return not left

    return unconflicted(close)
