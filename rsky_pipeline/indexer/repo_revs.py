"""`actor_sync`: the newest commit of each repo that is indexed. It never goes back.

PDSes compare it with what they have just written, so it must not claim more than is there: live
commits move it with their records, and a backfilled repo with the event that closes it.
"""

from collections.abc import Iterable

from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.indexer.events import RepoRev

_ADVANCE = """
INSERT INTO actor_sync (did, "commitCid", "repoRev")
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[])
ON CONFLICT (did) DO UPDATE SET "commitCid" = EXCLUDED."commitCid", "repoRev" = EXCLUDED."repoRev"
WHERE actor_sync."repoRev" IS NULL OR actor_sync."repoRev" < EXCLUDED."repoRev"
"""


def advance_revs(tx: Transaction, revs: Iterable[RepoRev]) -> None:
    """Note the newest rev of each repo of a batch."""
    newest: dict[str, RepoRev] = {}
    for rev in revs:
        known = newest.get(rev.did)
        if known is None or known.rev < rev.rev:
            newest[rev.did] = rev
    if newest:
        rows = [(did, newest[did].commit, newest[did].rev) for did in sorted(newest)]
        tx.execute(_ADVANCE, [list(column) for column in zip(*rows, strict=True)])
