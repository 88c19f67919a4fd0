"""Hosting status of accounts: `actor."upstreamStatus"`, where anything but NULL hides the account.

The newest event by its own time counts; older ones that come late change nothing. A deletion is
stored as a status, which hides the account at once; its rows are purged only when its host
confirms the deletion (see `deletions`), since a relay's word alone must not destroy data.
"""

from collections.abc import Iterable

from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.indexer.core.entries import AccountChange

_ADVANCE = """
INSERT INTO rsky_pipeline.account_event AS known (did, seq, event_time)
SELECT * FROM unnest(%b::text[], %b::bigint[], %b::text[])
ON CONFLICT (did) DO UPDATE SET seq = EXCLUDED.seq, event_time = EXCLUDED.event_time
WHERE (COALESCE(known.event_time, ''), COALESCE(known.seq, -1))
    < (EXCLUDED.event_time, EXCLUDED.seq)
RETURNING did
"""
_ASK_HOST = """
INSERT INTO rsky_pipeline.deletion_check (did) SELECT * FROM unnest(%b::text[])
ON CONFLICT (did) DO UPDATE SET attempts = 0, requested_at = now()
"""
_SET = """
UPDATE actor SET "upstreamStatus" = n.status
FROM unnest(%b::text[], %b::text[]) AS n(did, status)
WHERE actor.did = n.did AND actor."upstreamStatus" IS DISTINCT FROM n.status
"""
DELETED = "deleted"


def apply_accounts(tx: Transaction, events: Iterable[AccountChange]) -> int:
    """Apply the newest status of each account; return how many events were new."""
    newest: dict[str, AccountChange] = {}
    for event in events:
        known = newest.get(event.did)
        if known is None or (known.time, known.seq) < (event.time, event.seq):
            newest[event.did] = event
    if not newest:
        return 0
    ordered = [newest[did] for did in sorted(newest)]
    advanced = {
        row[0]
        for row in tx.query(
            _ADVANCE,
            (
                [event.did for event in ordered],
                [event.seq for event in ordered],
                [event.time for event in ordered],
            ),
        )
    }
    rows = [(event.did, event.status) for event in ordered if event.did in advanced]
    if rows:
        tx.execute(_SET, [list(column) for column in zip(*rows, strict=True)])
    if deleted := [did for did, status in rows if status == DELETED]:
        tx.execute(_ASK_HOST, (deleted,))
    return len(rows)
