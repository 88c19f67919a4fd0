"""Compares the rows of one repo with its signed tree: is everything there, and nothing else?

Only reads. A row that is newer than the tree is no difference: live events go on meanwhile.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rsky_pipeline.database.connection import Database
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.operations.recount import Drift, Scope, recount
from rsky_pipeline.repos.repo import Repo, list_paths

PAGE_ROWS = 10_000  # rows read at once
EXAMPLES = 20  # uris named of each kind of difference

_ROWS = """
SELECT uri, cid, COALESCE(rev, '') FROM record WHERE did = %s AND uri COLLATE "C" > %s
ORDER BY uri COLLATE "C" LIMIT %s
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
    unlisted: int = 0  # rows of `record` without their row in the collection's table
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, uri: str) -> None:
        """Count a record as `kind`."""
        setattr(self, kind, getattr(self, kind) + 1)
        if kind in {"missing", "extra", "different", "unlisted"}:
            named = self.examples.setdefault(kind, [])
            if len(named) < EXAMPLES:
                named.append(uri)

    @property
    def differences(self) -> int:
        """What is not as it should be."""
        return self.missing + self.extra + self.different + self.unlisted


@dataclass(slots=True)
class Comparison:
    """The outcome for a repo."""

    did: str
    rev: str
    collections: dict[str, Found]
    counts: list[Drift]  # counts of the account that differ from its rows

    @property
    def differences(self) -> int:
        """What is not as it should be."""
        return sum(found.differences for found in self.collections.values()) + len(self.counts)


def compare_repo(
    database: Database, repo: Repo, collections: Mapping[str, Collection]
) -> Comparison:
    """Compare a verified repo with the rows. Raises RepoError and DatabaseError."""
    did, rev = repo.commit.did, repo.commit.rev
    found = {nsid: Found() for nsid in collections}
    rejected: dict[str, str] = dict(database.query(_REJECTED, (did,)))
    tree = ((path, str(cid)) for path, cid in list_paths(repo))
    for path, cid, row in _merged(tree, _rows(database, did)):
        nsid, uri = path.partition("/")[0], f"at://{did}/{path}"
        if nsid not in collections:
            continue
        of = found.setdefault(nsid, Found())
        of.repo += cid is not None
        of.rows += row is not None
        of.add(_kind(cid, row, rev, rejected.get(uri)), uri)
    for nsid, of in found.items():
        for uri in _unlisted(database, collections[nsid], did):
            of.add("unlisted", uri)
    drifts = [
        drift
        for chunk in recount(database, Scope(dids=(did,)), repair=False)
        for drift in chunk.drifts
    ]
    seen = {nsid: of for nsid, of in sorted(found.items()) if of.repo or of.rows}
    return Comparison(did, rev, seen, drifts)


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


def _rows(database: Database, did: str) -> Iterator[tuple[str, tuple[str, str]]]:
    last = ""
    prefix = len(f"at://{did}/")
    while page := database.query(_ROWS, (did, last, PAGE_ROWS)):
        last = page[-1][0]
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


def _unlisted(database: Database, collection: Collection, did: str) -> list[str]:
    """Return records without a row in their collection's table that do not wait as duplicates."""
    if collection.table is None:
        return []
    sql = (
        "SELECT r.uri FROM record r WHERE r.did = %s AND split_part(r.uri, '/', 4) = %s "
        "AND (%s = '' OR split_part(r.uri, '/', 5) = %s) "
        f'AND NOT EXISTS (SELECT FROM "{collection.table.name}" t WHERE t.uri = r.uri) '
        "AND NOT EXISTS (SELECT FROM duplicate_record d WHERE d.uri = r.uri) ORDER BY 1"
    )
    rkey = collection.only_rkey
    return [row[0] for row in database.query(sql, (did, collection.nsid, rkey, rkey))]
