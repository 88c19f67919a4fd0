"""`rsky_pipeline.load_file`: what became of each file, so that a load can be resumed."""

from collections.abc import Sequence

import orjson

from rsky_pipeline.database.connection import Database
from rsky_pipeline.operations.load.files import CarFile
from rsky_pipeline.operations.load.outcome import Outcome

_KNOWN = """
SELECT path, size, mtime_ns, status FROM rsky_pipeline.load_file WHERE path = ANY(%b::text[])
"""
_NOTE = """
INSERT INTO rsky_pipeline.load_file
    (path, size, mtime_ns, status, did, rev, reason, error, records, refused, updated_at)
SELECT n.*, now() FROM unnest(%b::text[], %b::bigint[], %b::bigint[], %b::text[], %b::text[],
    %b::text[], %b::text[], %b::text[], %b::bigint[], %b::jsonb[])
    AS n(path, size, mtime_ns, status, did, rev, reason, error, records, refused)
ON CONFLICT (path) DO UPDATE SET
    size = EXCLUDED.size, mtime_ns = EXCLUDED.mtime_ns, status = EXCLUDED.status,
    did = EXCLUDED.did, rev = EXCLUDED.rev, reason = EXCLUDED.reason, error = EXCLUDED.error,
    records = EXCLUDED.records, refused = EXCLUDED.refused, updated_at = EXCLUDED.updated_at
"""


def settled(database: Database, files: Sequence[CarFile]) -> dict[str, str]:
    """Return path and status of those files that an earlier run settled and that did not change."""
    rows = database.query(_KNOWN, ([file.path for file in files],))
    known = {path: (size, mtime_ns, status) for path, size, mtime_ns, status in rows}
    found: dict[str, str] = {}
    for file in files:
        size, mtime_ns, status = known.get(file.path, (None, None, ""))
        if (size, mtime_ns) == (file.size, file.mtime_ns):
            found[file.path] = status
    return found


def note(database: Database, outcomes: Sequence[Outcome]) -> None:
    """Keep outcomes."""
    if not outcomes:
        return
    rows = sorted(
        (
            each.path, each.size, each.mtime_ns, each.status, each.did, each.rev, each.reason,
            None if each.error is None else each.error.replace("\0", ""), each.records,
            orjson.dumps(each.refused).decode() if each.refused else None,
        )
        for each in outcomes
    )  # fmt: skip
    database.execute(_NOTE, [list(column) for column in zip(*rows, strict=True)])
