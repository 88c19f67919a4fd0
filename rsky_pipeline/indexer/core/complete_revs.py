"""How far a repo is indexed: its complete rev, and the newest commit in `actor_sync`.

The complete rev of a repo is one up to which everything of it is known. It is set when a whole repo
has been brought in and the records that it no longer holds were deleted. From then on an older put
is stale without any tombstone (see `plan`), so the tombstones below it are removed. It is read and
raised under the lock on the account, and only ever goes up. Its table is called `repo_floor`.

PDSes compare `actor_sync` with the commit they wrote last, so it must not claim more than is there:
live commits move it with their records, and a backfilled repo with the event that closes it. It
never goes back.
"""

from collections.abc import Collection, Iterable, Mapping

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.core.entries import RepoRev

PAGE_REPOS = 200
BATCH_TOMBSTONES = 5_000  # so that no transaction is long

_FETCH = "SELECT did, rev, purged FROM rsky_pipeline.repo_floor WHERE did = ANY(%b::text[])"
_RAISE = """
INSERT INTO rsky_pipeline.repo_floor AS known (did, rev)
SELECT * FROM unnest(%b::text[], %b::text[])
ON CONFLICT (did) DO UPDATE SET rev = EXCLUDED.rev, pruned = false, purged = false
    WHERE known.rev < EXCLUDED.rev
"""
_ADVANCE = """
INSERT INTO actor_sync (did, "commitCid", "repoRev")
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[])
ON CONFLICT (did) DO UPDATE SET "commitCid" = EXCLUDED."commitCid", "repoRev" = EXCLUDED."repoRev"
WHERE actor_sync."repoRev" IS NULL OR actor_sync."repoRev" < EXCLUDED."repoRev"
"""
_UNPRUNED = """
SELECT did, rev FROM rsky_pipeline.repo_floor WHERE NOT pruned
ORDER BY did LIMIT %s FOR UPDATE SKIP LOCKED
"""
# A batch that writes a tombstone holds it: it is left alone, nobody waits for anybody.
_PRUNE = """
DELETE FROM rsky_pipeline.tombstone WHERE uri IN (
    SELECT t.uri FROM unnest(%b::text[], %b::text[]) AS n(did, rev)
    JOIN rsky_pipeline.tombstone t ON t.did = n.did AND t.rev < n.rev
    WHERE split_part(t.uri, '/', 4) <> 'app.bsky.feed.post'
        AND t.takedown IS NULL
    ORDER BY t.uri LIMIT %s FOR UPDATE OF t SKIP LOCKED
)
"""
_PRUNED = """
UPDATE rsky_pipeline.repo_floor f SET pruned = true
FROM unnest(%b::text[], %b::text[]) AS n(did, rev) WHERE f.did = n.did AND f.rev = n.rev
"""


def newly_complete(revs: Iterable[RepoRev]) -> dict[str, str]:
    """Return the complete revs that events of a batch set, the highest of each repo."""
    found: dict[str, str] = {}
    for rev in revs:
        if rev.complete and found.get(rev.did, "") < rev.rev:
            found[rev.did] = rev.rev
    return found


def fetch_complete_revs(
    tx: Transaction, dids: Collection[str], raised: Mapping[str, str]
) -> tuple[dict[str, str], set[str]]:
    """Return the complete revs of repos, where the batch itself raises one the higher.

    And the accounts among them that were purged at this rev (see `accounts.purge`).
    """
    found: dict[str, str] = {}
    purged: set[str] = set()
    if dids:
        for did, rev, of_purge in tx.query(_FETCH, (sorted(dids),)):
            found[did] = rev
            if of_purge:
                purged.add(did)
    for did, rev in raised.items():
        found[did] = max(rev, found.get(did, ""))
    return found, purged


def raise_complete_revs(tx: Transaction, revs: Mapping[str, str]) -> None:
    """Set complete revs; the caller holds the locks on the accounts and has written the rows."""
    if revs:
        rows = sorted(revs.items())
        tx.execute(_RAISE, [list(column) for column in zip(*rows, strict=True)])


def advance_actor_sync(tx: Transaction, revs: Iterable[RepoRev]) -> None:
    """Store the newest commit of each repo of a batch."""
    newest: dict[str, RepoRev] = {}
    for rev in revs:
        known = newest.get(rev.did)
        if known is None or known.rev < rev.rev:
            newest[rev.did] = rev
    if newest:
        rows = [(did, newest[did].commit, newest[did].rev) for did in sorted(newest)]
        tx.execute(_ADVANCE, [list(column) for column in zip(*rows, strict=True)])


def prune_tombstones(database: Database) -> int | None:
    """Remove some tombstones below complete revs; None when there are no more of them."""
    with database.transaction() as tx:
        repos = tx.query(_UNPRUNED, (PAGE_REPOS,))
        if not repos:
            return None
        columns = [list(column) for column in zip(*repos, strict=True)]
        removed = tx.execute(_PRUNE, [*columns, BATCH_TOMBSTONES])
        if removed < BATCH_TOMBSTONES:
            tx.execute(_PRUNED, columns)
        return removed
