"""Records that cannot be indexed: kept with their reason, so that an operator can find them.

Of each record its newest refused state is kept, whoever refused it: workers, `index-repo`, `load`.
It is forgotten when a newer state of the record was indexed, or when the record was deleted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.core.entries import Reading

MAX_MESSAGE = 500
PAGE_REJECTIONS = 2_000

_KEEP = """
INSERT INTO rsky_pipeline.rejected_record AS known
    (uri, did, collection, rev, cid, reason, message)
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],
    %b::text[])
ON CONFLICT (uri) DO UPDATE SET rev = EXCLUDED.rev, cid = EXCLUDED.cid, reason = EXCLUDED.reason,
    message = EXCLUDED.message, rejected_at = now()
WHERE known.rev <= EXCLUDED.rev
"""
# A page a round, so that a large table is looked through bit by bit.
_FORGET = """
WITH looked AS MATERIALIZED (
    SELECT uri, did, rev FROM rsky_pipeline.rejected_record WHERE uri > %s
    ORDER BY uri LIMIT %s FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM rsky_pipeline.rejected_record r USING looked l
    WHERE r.uri = l.uri AND (
        EXISTS (SELECT FROM record k WHERE k.uri = l.uri AND k.rev >= l.rev)
        OR EXISTS (SELECT FROM rsky_pipeline.tombstone t WHERE t.uri = l.uri AND t.rev >= l.rev)
        OR EXISTS (SELECT FROM rsky_pipeline.repo_floor f WHERE f.did = l.did AND f.rev > l.rev)
    ) RETURNING r.uri
)
SELECT max(uri), count(*), (SELECT count(*) FROM gone) FROM looked
"""
_STANDING = """
FROM rsky_pipeline.rejected_record r LEFT JOIN record k ON k.uri = r.uri
WHERE (k.uri IS NULL OR k.rev IS NULL OR k.rev < r.rev)
    AND NOT EXISTS (SELECT FROM rsky_pipeline.tombstone t WHERE t.uri = r.uri AND t.rev >= r.rev)
"""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A state of a record that was refused."""

    uri: str
    did: str
    collection: str
    rev: str
    cid: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ListedRejection:
    """A rejection in a listing; with `older`, an older version of the record stands."""

    rejection: Rejection
    at: str
    older: bool


@dataclass(frozen=True, slots=True)
class RejectionFilter:
    """Which rejections to list; None means any."""

    did: str | None = None
    uri: str | None = None
    collection: str | None = None
    reason: str | None = None

    def sql(self) -> tuple[str, list[str]]:
        """Return a condition on `r` and its parameters."""
        given = [
            (name, value)
            for name in ("did", "uri", "collection", "reason")
            if (value := getattr(self, name)) is not None
        ]
        text = "".join(f" AND r.{name} = %s" for name, _ in given)
        return text, [value for _, value in given]


def keep_rejections(tx: Transaction, readings: Iterable[Reading]) -> None:
    """Store the refused records among readings, the newest state of each."""
    newest: dict[str, tuple[str, ...]] = {}
    for reading in readings:
        refused = reading.refused
        if refused is None or not refused.uri:
            continue
        known = newest.get(refused.uri)
        if known is None or known[3] <= refused.rev:
            message = refused.message[:MAX_MESSAGE].replace("\0", "")
            newest[refused.uri] = (
                refused.uri, reading.did, reading.collection, refused.rev, refused.cid,
                refused.reason, message.encode("utf-8", "replace").decode(),
            )  # fmt: skip
    if newest:
        rows = [newest[uri] for uri in sorted(newest)]
        tx.execute(_KEEP, [list(column) for column in zip(*rows, strict=True)])


def forget_superseded(database: Database, after: str = "") -> str:
    """Forget obsolete rejections, of the page that begins after a uri.

    Returns where the next page begins; an empty text is the beginning.
    """
    ((last, looked, _),) = database.query(_FORGET, (after, PAGE_REJECTIONS))
    return str(last) if looked == PAGE_REJECTIONS else ""


def list_rejections(
    database: Database, wanted: RejectionFilter, limit: int
) -> list[ListedRejection]:
    """Return rejections that still stand, the newest first."""
    condition, values = wanted.sql()
    sql = (
        "SELECT r.uri, r.did, r.collection, r.rev, r.cid, r.reason, r.message, "
        "to_char(r.rejected_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), "
        f"k.uri IS NOT NULL {_STANDING}{condition} ORDER BY r.rejected_at DESC, r.uri LIMIT %s"
    )
    rows = database.query(sql, [*values, limit])
    return [ListedRejection(Rejection(*row[:7]), row[7], row[8]) for row in rows]


def count_rejections(database: Database, wanted: RejectionFilter) -> Mapping[tuple[str, str], int]:
    """Return how many rejections stand, by collection and reason."""
    condition, values = wanted.sql()
    sql = (
        f"SELECT r.collection, r.reason, count(*) {_STANDING}{condition} "
        "GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
    )
    return {(row[0], row[1]): row[2] for row in database.query(sql, values)}
