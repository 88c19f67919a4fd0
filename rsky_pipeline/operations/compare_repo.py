"""Compares the rows of one account with its signed repo: is everything there, and nothing else?

First `record` with the tree, then all rows that the records make (`derived_rows`), and counts. Only
reads, in one snapshot. A record that is newer than the tree is no difference: live events go on
meanwhile. Each difference has a remedy, a command that removes it.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

from rsky_pipeline.configuration.advice import advised
from rsky_pipeline.configuration.selection import lifting
from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.database.selection import Block, blocks_of
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.operations.derived_rows import RowDifference, compare_rows, snapshot
from rsky_pipeline.operations.erasure import erased_revs
from rsky_pipeline.operations.recount import Drift, Scope, recount
from rsky_pipeline.repos.repo import Repo, list_paths

PAGE_ROWS = 10_000  # rows read at once
EXAMPLES = 20  # uris named of each kind of difference

_ROWS = """
DECLARE stored NO SCROLL CURSOR FOR SELECT uri, cid, COALESCE(rev, '') FROM record
WHERE did = %s ORDER BY uri COLLATE "C"
"""
_REJECTED = "SELECT uri, cid FROM rsky_pipeline.rejected_record WHERE did = %s"


@dataclass(slots=True)
class Found:
    """How the records of a collection compare; each name of a list is one of `EXAMPLES` uris."""

    repo: int = 0  # records in the tree
    rows: int = 0  # rows of `record`
    equal: int = 0
    newer: int = 0  # rows of later commits than the tree's
    refused: int = 0  # of the tree's records: they are known not to be indexable
    missing: int = 0
    extra: int = 0
    different: int = 0
    unlisted: int = 0  # rows of `record` without their row in the collection's table (see `rows`)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, uri: str) -> None:
        """Count a record as `kind`."""
        setattr(self, kind, getattr(self, kind) + 1)
        if kind in {"missing", "extra", "different"}:
            named = self.examples.setdefault(kind, [])
            if len(named) < EXAMPLES:
                named.append(uri)

    @property
    def differences(self) -> int:
        """Records that are not as they should be."""
        return self.missing + self.extra + self.different


@dataclass(slots=True)
class FoundRows:
    """How the rows of a table differ from what the records say; some differences are named."""

    missing: int = 0
    extra: int = 0
    different: int = 0
    damaged: int = 0  # records whose JSON is not the content that their CID names
    examples: list[RowDifference] = field(default_factory=list)

    def add(self, found: RowDifference) -> None:
        """Count a difference."""
        setattr(self, found.kind, getattr(self, found.kind) + 1)
        if len(self.examples) < EXAMPLES:
            self.examples.append(found)

    @property
    def total(self) -> int:
        """Differences of the table."""
        return self.missing + self.extra + self.different + self.damaged


@dataclass(slots=True)
class Comparison:
    """The outcome for an account."""

    did: str
    rev: str  # of the repo; empty if it was not fetched
    collections: dict[str, Found]
    rows: dict[str, FoundRows]  # by table
    counts: list[Drift]  # counts of the account that differ from its rows
    blocks: list[Block] = field(default_factory=list)  # which the account is under
    erased: str = ""  # rev up to which it was erased, if its repo is not newer

    @property
    def differences(self) -> int:
        """Everything that is not as it should be."""
        return (
            sum(found.differences for found in self.collections.values())
            + sum(found.total for found in self.rows.values())
            + len(self.counts)
        )

    @property
    def remedies(self) -> list[str]:
        """The commands that remove the differences, in the order to run them; see `advised`."""
        records = self.collections.values()
        blocked = bool(self.blocks)  # its repo is not fetched
        # What has the rev of the repo and another content cannot be an older state of it.
        other = any(of.damaged for of in self.rows.values()) or any(of.different for of in records)
        found = []
        if blocked and (other or any(of.differences for of in records)):
            found += [lifting(each.kind, each.subject) for each in self.blocks]
        if other and not blocked:
            found.append(advised("index-repo", "--rebuild", "--source", "pds", self.did))
        else:
            if any(of.differences for of in records) and not blocked:
                found.append(advised("index-repo", self.did))
            if self.rows:
                found.append(advised("index-repo", "--rebuild", self.did))
        if self.counts:
            found.append(advised("db", "recount", self.did))
        return found


def compare_repo(
    database: Database, repo: Repo, collections: Mapping[str, Collection]
) -> Comparison:
    """Compare a verified repo with the rows. Raises RepoError and DatabaseError."""
    return _compare(database, repo.commit.did, repo, collections)


def compare_stored(
    database: Database, did: str, collections: Mapping[str, Collection]
) -> Comparison:
    """Compare the rows of an account with its stored records alone. Raises DatabaseError."""
    return _compare(database, did, None, collections)


def _compare(
    database: Database, did: str, repo: Repo | None, collections: Mapping[str, Collection]
) -> Comparison:
    found = {nsid: Found() for nsid in collections}
    rows: dict[str, FoundRows] = {}
    tables = {of.table.name: nsid for nsid, of in collections.items() if of.table is not None}
    erased = ""
    with snapshot(database) as tx:
        blocks = blocks_of(tx, did, None if repo is None else repo.host)
        if repo is not None:
            rev = erased_revs(tx, [did]).get(did, "")
            erased = rev if rev >= repo.commit.rev else ""
            _compare_tree(tx, repo, collections, found, refused=bool(erased))
        for _, page in compare_rows(lambda: nullcontext(tx), did, collections):
            for one in page:
                rows.setdefault(one.table, FoundRows()).add(one)
                if one.kind == "missing" and one.table in tables:
                    found[tables[one.table]].unlisted += 1
    drifts = [
        drift
        for chunk in recount(database, Scope(dids=(did,)), repair=False)
        for drift in chunk.drifts
    ]
    seen = {nsid: of for nsid, of in sorted(found.items()) if of.repo or of.rows or of.unlisted}
    rev = "" if repo is None else repo.commit.rev
    return Comparison(did, rev, seen, dict(sorted(rows.items())), drifts, blocks, erased)


def _compare_tree(
    tx: Transaction, repo: Repo, collections: Mapping[str, Collection], found: dict[str, Found],
    *, refused: bool,
) -> None:  # fmt: skip
    did, rev = repo.commit.did, repo.commit.rev
    rejected: dict[str, str] = dict(tx.query(_REJECTED, (did,)))
    tree = ((path, str(cid)) for path, cid in list_paths(repo))
    for path, cid, row in _merged(tree, _rows(tx, did)):
        nsid, uri = path.partition("/")[0], f"at://{did}/{path}"
        if nsid not in collections:
            continue
        of = found.setdefault(nsid, Found())
        of.repo += cid is not None
        of.rows += row is not None
        kind = _kind(cid, row, rev, rejected.get(uri))
        of.add("refused" if refused and kind == "missing" else kind, uri)


def _kind(cid: str | None, row: tuple[str, str] | None, rev: str, rejected: str | None) -> str:
    """Classify a record by its CID in the tree and by the CID and rev of its row."""
    if row is not None and row[0] == cid:
        return "equal"
    if row is not None and row[1] > rev:
        return "newer"
    if cid is not None and rejected == cid:
        return "refused"
    if cid is None:
        return "extra"
    return "missing" if row is None else "different"


def _rows(tx: Transaction, did: str) -> Iterator[tuple[str, tuple[str, str]]]:
    prefix = len(f"at://{did}/")
    tx.execute(_ROWS, (did,))
    while page := tx.query(f"FETCH {PAGE_ROWS} FROM stored"):
        yield from ((uri[prefix:], (cid, rev)) for uri, cid, rev in page)


def _merged(
    tree: Iterator[tuple[str, str]], rows: Iterator[tuple[str, tuple[str, str]]]
) -> Iterator[tuple[str, str | None, tuple[str, str] | None]]:
    """Yield every path once with its CID in the tree and its row; both sides ascend."""
    held, row = next(tree, None), next(rows, None)
    while held is not None or row is not None:
        if row is None or (held is not None and held[0] < row[0]):
            assert held is not None
            yield held[0], held[1], None
            held = next(tree, None)
        elif held is None or row[0] < held[0]:
            yield row[0], None, row[1]
            row = next(rows, None)
        else:
            yield row[0], held[1], row[1]
            held, row = next(tree, None), next(rows, None)
