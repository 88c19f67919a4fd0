"""The floor of a repo: a rev up to which everything of it is known.

It is set when a whole repo has been brought in and what it no longer holds was deleted. From then
on an older put is stale without any tombstone (see `plan`), so the tombstones below it are removed.
Floors are read and raised under the lock on the account, and only ever go up.
"""

from collections.abc import Collection, Iterable, Mapping

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.events import RepoRev

PRUNE_REPOS = 200  # floors that are looked at in one step
PRUNE_ROWS = 5_000  # tombstones removed in one step, so that no transaction is long

_FETCH = "SELECT did, rev FROM rsky_pipeline.repo_floor WHERE did = ANY(%b::text[])"
_RAISE = """
INSERT INTO rsky_pipeline.repo_floor AS known (did, rev)
SELECT * FROM unnest(%b::text[], %b::text[])
ON CONFLICT (did) DO UPDATE SET rev = EXCLUDED.rev, pruned = false, purged = false
    WHERE known.rev < EXCLUDED.rev
"""
_UNPRUNED = """
SELECT did, rev FROM rsky_pipeline.repo_floor WHERE NOT pruned
ORDER BY did LIMIT %s FOR UPDATE SKIP LOCKED
"""
# A batch that buries a record holds its tombstone: it is left alone, nobody waits for anybody.
_PRUNE = """
DELETE FROM rsky_pipeline.tombstone WHERE uri IN (
    SELECT t.uri FROM unnest(%b::text[], %b::text[]) AS n(did, rev)
    JOIN rsky_pipeline.tombstone t ON t.did = n.did AND t.rev < n.rev
    WHERE split_part(t.uri, '/', 4) <> 'app.bsky.feed.post'
    ORDER BY t.uri LIMIT %s FOR UPDATE OF t SKIP LOCKED
)
"""
_PRUNED = """
UPDATE rsky_pipeline.repo_floor f SET pruned = true
FROM unnest(%b::text[], %b::text[]) AS n(did, rev) WHERE f.did = n.did AND f.rev = n.rev
"""


def complete_revs(revs: Iterable[RepoRev]) -> dict[str, str]:
    """Return the floors that events of a batch set, the highest of each repo."""
    found: dict[str, str] = {}
    for rev in revs:
        if rev.complete and found.get(rev.did, "") < rev.rev:
            found[rev.did] = rev.rev
    return found


def fetch_floors(
    tx: Transaction, dids: Collection[str], raised: Mapping[str, str]
) -> dict[str, str]:
    """Return the floors of repos, where the batch itself raises one the higher."""
    if not dids:
        return dict(raised)
    floors: dict[str, str] = dict(tx.query(_FETCH, (sorted(dids),)))
    for did, rev in raised.items():
        floors[did] = max(rev, floors.get(did, ""))
    return floors


def raise_floors(tx: Transaction, floors: Mapping[str, str]) -> None:
    """Set floors; the caller holds the locks on the accounts and has written what they claim."""
    if floors:
        rows = sorted(floors.items())
        tx.execute(_RAISE, [list(column) for column in zip(*rows, strict=True)])


def prune_tombstones(database: Database) -> int | None:
    """Remove some tombstones that floors make needless; None when there are no more of them."""
    with database.transaction() as tx:
        floors = tx.query(_UNPRUNED, (PRUNE_REPOS,))
        if not floors:
            return None
        columns = [list(column) for column in zip(*floors, strict=True)]
        removed = tx.execute(_PRUNE, [*columns, PRUNE_ROWS])
        if removed < PRUNE_ROWS:
            tx.execute(_PRUNED, columns)
        return removed
