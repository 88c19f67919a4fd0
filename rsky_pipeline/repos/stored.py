"""Queries about repos in PostgreSQL: their revs, and rows older than a repo. Blocking."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.repos.changes import absent
from rsky_pipeline.repos.repo import RepoPaths

PAGE_ROWS = 5_000  # a repo with more is read through a cursor
PAGE_PATHS = 20_000

# `repo_floor.rev` is the complete rev.
_REVS = """
SELECT wanted.did, floor.rev, sync."repoRev", queued.rev
FROM unnest(%b::text[]) AS wanted(did)
LEFT JOIN rsky_pipeline.repo_floor AS floor ON floor.did = wanted.did
LEFT JOIN actor_sync AS sync ON sync.did = wanted.did
LEFT JOIN rsky_pipeline.backfill_repo AS queued ON queued.did = wanted.did
"""
_HAVE_OLDER = """
SELECT wanted.did FROM unnest(%b::text[], %b::text[]) AS wanted(did, rev)
WHERE EXISTS (
    SELECT 1 FROM record
    WHERE record.did = wanted.did
    AND (record.rev IS NULL OR record.rev COLLATE "C" < wanted.rev)
)
"""
# Rows at least as new as the repo may come from commits that the fetched repo predates.
_OLDER = """
SELECT uri FROM record
WHERE did = %s AND (rev IS NULL OR rev COLLATE "C" < %s) AND uri COLLATE "C" > %s
"""


@dataclass(frozen=True, slots=True)
class StoredRevs:
    """The revs of a repo in PostgreSQL; None if absent.

    `complete` is the rev at which the repo was last stored as a whole (its complete rev), `newest`
    the rev of its newest stored commit, `queued` the rev at which the backfiller last queued it as
    a whole or found it current.
    """

    complete: str | None
    newest: str | None
    queued: str | None

    @property
    def highest(self) -> str:
        """The newest rev of any stored state of the repo, "" if there is none."""
        return max(self.complete or "", self.newest or "")


def stored_revs(database: Database, dids: Sequence[str]) -> list[StoredRevs]:
    """Return the stored revs of each repo, in order."""
    rows = database.query(_REVS, [list(dids)])
    found = {did: StoredRevs(*revs) for did, *revs in rows}
    return [found[did] for did in dids]


def have_older(database: Database, repos: Sequence[tuple[str, str]]) -> list[bool]:
    """Return for each (did, rev) whether the account has rows older than the rev."""
    dids, revs = [did for did, _ in repos], [rev for _, rev in repos]
    found = {did for (did,) in database.query(_HAVE_OLDER, [dids, revs])}
    return [did in found for did in dids]


def absent_paths(database: Database, paths: RepoPaths, after: str = "") -> list[str]:
    """Return stored paths older than a repo that its tree does not hold, ascending, after `after`.

    Returns at most PAGE_PATHS: for the next page, call again with the last path.
    """
    commit = paths.repo.commit
    with database.transaction() as tx:
        found: list[str] = []
        for path in absent(older_paths(tx, commit.did, commit.rev, after), paths):
            found.append(path)
            if len(found) == PAGE_PATHS:
                break
        return found


def older_paths(tx: Transaction, did: str, rev: str, after: str = "") -> Iterator[str]:
    """Yield paths of an account's rows that are older than a rev, ascending, from `after`."""
    prefix = f"at://{did}/"
    rows = tx.query(f"{_OLDER} LIMIT {PAGE_ROWS + 1}", [did, rev, prefix + after])
    if len(rows) <= PAGE_ROWS:
        yield from sorted(uri[len(prefix) :] for (uri,) in rows)
        return
    ordered = f'DECLARE older NO SCROLL CURSOR FOR {_OLDER} ORDER BY uri COLLATE "C"'
    tx.execute(ordered, [did, rev, prefix + after])
    while page := tx.query(f"FETCH {PAGE_ROWS} FROM older"):
        yield from (uri[len(prefix) :] for (uri,) in page)
