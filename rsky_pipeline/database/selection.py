"""What operators leave out at run time: the truth, in `rsky_pipeline.block`.

Each change raises a version in its transaction. Whoever writes events reads the version in the
transaction that writes (`marks.raise_mark`), after it has locked accounts: so a transaction either
knows of a change, or began before it and has ended when `wait_for_writers` returns.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rsky_pipeline.configuration.selection import BlockKind, Selection, host_name
from rsky_pipeline.database.connection import Database, Transaction

# Producers take a change up within that time; their clocks may differ.
QUEUED_SECONDS = 30.0
_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.1

SELECTION_VERSION = "SELECT coalesce(max(version), 0) FROM rsky_pipeline.selection"
_BLOCKS = "SELECT kind, subject FROM rsky_pipeline.block WHERE NOT lifted"
_QUEUED = """
SELECT a.did, max(extract(epoch FROM b.since))::float8
FROM rsky_pipeline.blocked_account a
JOIN rsky_pipeline.block b ON b.kind = 'host' AND b.subject = a.host AND NOT b.lifted
GROUP BY 1
"""
_LIST = """
SELECT kind, subject, rows, reason, added_by, since, lifted,
    (SELECT count(*) FROM rsky_pipeline.blocked_account a
     WHERE b.kind = 'host' AND a.host = b.subject)
FROM rsky_pipeline.block b ORDER BY since, kind, subject
"""
_FETCHED_FROM = """
SELECT host FROM rsky_pipeline.backfill_repo WHERE did = %s AND host IS NOT NULL
"""
_RAISE = """
WITH raised AS (UPDATE rsky_pipeline.selection SET version = version + 1 RETURNING 1)
INSERT INTO rsky_pipeline.selection SELECT 1 WHERE NOT EXISTS (SELECT FROM raised)
"""
_ADD = """
INSERT INTO rsky_pipeline.block AS known (kind, subject, rows, reason, added_by)
VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (kind, subject) DO UPDATE SET lifted = false,
    rows = CASE WHEN known.rows = 'purge' OR (EXCLUDED.rows = 'keep' AND NOT known.lifted)
        THEN known.rows ELSE EXCLUDED.rows END,
    reason = CASE WHEN EXCLUDED.reason = '' THEN known.reason ELSE EXCLUDED.reason END,
    added_by = CASE WHEN known.lifted THEN EXCLUDED.added_by ELSE known.added_by END,
    since = CASE WHEN known.lifted THEN now() ELSE known.since END
"""
_LIFT = "UPDATE rsky_pipeline.block SET lifted = true WHERE kind = %s AND subject = %s"
_FORGET = "DELETE FROM rsky_pipeline.block WHERE kind = %s AND subject = %s AND lifted"
_FORGET_ACCOUNTS = """
DELETE FROM rsky_pipeline.blocked_account a WHERE a.host = %s AND NOT EXISTS (
    SELECT FROM rsky_pipeline.block b WHERE b.kind = 'host' AND b.subject = a.host
)
"""
_ADD_ACCOUNTS = """
INSERT INTO rsky_pipeline.blocked_account (host, did) SELECT %s, unnest(%b::text[])
ON CONFLICT DO NOTHING
"""
# A transaction id of our own: whoever writes already has a lower one.
_NEWEST = "SELECT pg_current_xact_id()::text"
_ARE_OVER = "SELECT pg_snapshot_xmin(pg_current_snapshot()) > %s::text::xid8"


@dataclass(frozen=True, slots=True)
class Block:
    """A block as it is stored. A `lifted` one has no effect, and its repairs are not all queued."""

    kind: BlockKind
    subject: str
    rows: str = "keep"
    reason: str = ""
    added_by: str = ""
    since: datetime | None = None
    lifted: bool = False
    accounts: int = 0  # known, of a host


def selection_version(database: Database) -> int:
    """Return the version of what is left out."""
    ((version,),) = database.query(SELECTION_VERSION)
    return int(version)


def load_selection(database: Database) -> Selection:
    """Return what is left out. Raises DatabaseError."""
    # The version first: content that is newer than its version is loaded once more.
    version = selection_version(database)
    found: dict[str, list[str]] = {"account": [], "host": [], "collection": []}
    for kind, subject in database.query(_BLOCKS):
        found.setdefault(kind, []).append(subject)
    queued = {}
    if found["host"]:
        queued = {did: since + QUEUED_SECONDS for did, since in database.query(_QUEUED)}
    return Selection(
        version, frozenset(found["account"]), frozenset(found["host"]),
        tuple(sorted(found["collection"])), queued,
    )  # fmt: skip


class SelectionReader:
    """What is left out as a worker last read it; `refresh` costs a query where nothing changed."""

    def __init__(self) -> None:
        self.selection = Selection()

    def refresh(self, database: Database) -> None:
        """Read it again if it has changed."""
        if selection_version(database) != self.selection.version:
            self.selection = load_selection(database)


def list_blocks(database: Database | Transaction) -> list[Block]:
    """Return all blocks, the oldest first."""
    return [Block(*row) for row in database.query(_LIST)]


def blocks_of(
    database: Database | Transaction, did: str, pds: str | None = None, collection: str = ""
) -> list[Block]:
    """Return the blocks that an account is under, and with `collection` a record of it.

    Without `pds` the host is that from which the repo was fetched last, if it was.
    """
    host = host_name(pds or _first(database.query(_FETCHED_FROM, (did,))))
    found = []
    for block in list_blocks(database):
        only = Selection(
            accounts=frozenset((block.subject,) if block.kind == "account" else ()),
            hosts=frozenset((block.subject,) if block.kind == "host" else ()),
            collections=(block.subject,) if block.kind == "collection" else (),
        )
        if not block.lifted and not only.keeps(did, host, collection):
            found.append(block)
    return found


def _first(rows: Sequence[tuple[str, ...]]) -> str | None:
    return rows[0][0] if rows else None


def add_blocks(database: Database, blocks: list[Block]) -> None:
    """Add blocks, or change those that are there."""
    with database.transaction() as tx:
        for each in blocks:
            tx.execute(_ADD, (each.kind, each.subject, each.rows, each.reason, each.added_by))
        tx.execute(_RAISE)


def add_accounts(database: Database, host: str, dids: list[str]) -> None:
    """Note accounts of a blocked host."""
    with database.transaction() as tx:
        tx.execute(_ADD_ACCOUNTS, (host, dids))
        tx.execute(_RAISE)


def lift_blocks(database: Database, blocks: list[Block]) -> None:
    """Take blocks out of effect; they are kept until `forget_blocks`."""
    with database.transaction() as tx:
        for each in blocks:
            tx.execute(_LIFT, (each.kind, each.subject))
        tx.execute(_RAISE)


def forget_blocks(tx: Transaction, blocks: list[Block]) -> None:
    """Remove lifted blocks, unless they were added again."""
    for each in blocks:
        tx.execute(_FORGET, (each.kind, each.subject))
        if each.kind == "host":
            tx.execute(_FORGET_ACCOUNTS, (each.subject,))


def wait_for_writers(database: Database, seconds: float = _WAIT_SECONDS) -> bool:
    """Wait until every transaction is over that has written anything; return whether it is."""
    ((newest,),) = database.query(_NEWEST)
    deadline = time.monotonic() + seconds
    while not database.query(_ARE_OVER, (newest,))[0][0]:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
