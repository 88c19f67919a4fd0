"""What the backfiller reads from and writes to PostgreSQL; blocking, for one thread."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from rsky_pipeline.backfiller.reconcile import absent
from rsky_pipeline.database.bulk import transpose, unnest_sql
from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.database.isolation import Culprit, apply_isolated
from rsky_pipeline.database.texts import storable

Status = Literal["done", "waiting", "unavailable", "failed"]
SMALL = 5_000  # rows of a repo that are read at once
GONE = 20_000  # paths that are returned at once
_COLUMNS = (
    ("did", "text"), ("status", "text"), ("kind", "text"), ("reason", "text"), ("error", "text"),
    ("rev", "text"), ("host", "text"), ("attempts", "integer"), ("next_attempt_at", "timestamptz"),
    ("records", "bigint"), ("deletes", "bigint"), ("bytes", "bigint"), ("seconds", "real"),
)  # fmt: skip
_MAX_TEXT = 500  # bytes of an error, a reason or a host that are kept

# A state that says nothing of what was queued keeps what an earlier one said.
_WRITE = f"""
INSERT INTO rsky_pipeline.backfill_repo AS stored
    ({", ".join(name for name, _ in _COLUMNS)}, updated_at)
SELECT incoming.*, now() FROM {unnest_sql(_COLUMNS)}
ON CONFLICT (did) DO UPDATE SET
    status = EXCLUDED.status, kind = EXCLUDED.kind, reason = EXCLUDED.reason,
    error = EXCLUDED.error, attempts = EXCLUDED.attempts,
    next_attempt_at = EXCLUDED.next_attempt_at, seconds = EXCLUDED.seconds,
    rev = COALESCE(EXCLUDED.rev, stored.rev), host = COALESCE(EXCLUDED.host, stored.host),
    records = COALESCE(EXCLUDED.records, stored.records),
    deletes = COALESCE(EXCLUDED.deletes, stored.deletes),
    bytes = COALESCE(EXCLUDED.bytes, stored.bytes), updated_at = EXCLUDED.updated_at
"""
_STORED = """
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
# Rows that are as new as the repo or newer are of commits that it does not hold yet.
_OLDER = """
SELECT uri FROM record
WHERE did = %s AND (rev IS NULL OR rev COLLATE "C" < %s) AND uri COLLATE "C" > %s
"""


@dataclass(frozen=True, slots=True)
class State:
    """What is known of fetching a repo; a row of `rsky_pipeline.backfill_repo`."""

    did: str
    status: Status
    kind: str | None = None
    reason: str | None = None
    error: str | None = None
    rev: str | None = None
    host: str | None = None
    attempts: int = 0
    next_attempt_at: datetime | None = None
    records: int | None = None
    deletes: int | None = None
    bytes: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """The rev at which a repo was last indexed as a whole, and that of its newest commit.

    `queued` is the rev at which it was last queued as a whole, or found to be new enough.
    """

    floor: str | None
    newest: str | None
    queued: str | None

    @property
    def newest_rev(self) -> str:
        """The newest rev that anything of the repo is stored at, "" for none."""
        return max(self.floor or "", self.newest or "")


class Ledger:
    """One connection, opened when it is first needed. Calls raise DatabaseError.

    After an error the connection is closed, and the next call opens another.
    """

    def __init__(self, connect: Callable[[], Database]) -> None:
        self._connect = connect
        self._open: Database | None = None

    def write(self, states: Sequence[State]) -> list[Culprit[State]]:
        """Store states, of which there is one for each repo; return those that are refused."""
        ordered = sorted(states, key=lambda state: state.did)
        return apply_isolated(ordered, self._write)

    def _write(self, states: Sequence[State]) -> None:
        rows = [
            (state.did, state.status, state.kind, _storable(state.reason), _storable(state.error),
             state.rev, _storable(state.host), state.attempts, state.next_attempt_at,
             state.records, state.deletes, state.bytes, state.seconds)
            for state in states
        ]  # fmt: skip
        self._database().execute(_WRITE, transpose(rows, len(_COLUMNS)))

    def stored_revs(self, dids: Sequence[str]) -> list[Stored]:
        """Return what is stored of each repo."""
        rows = self._database().query(_STORED, [list(dids)])
        found = {did: Stored(*revs) for did, *revs in rows}
        return [found[did] for did in dids]

    def have_older(self, repos: Sequence[tuple[str, str]]) -> list[bool]:
        """Return for each (did, rev) whether rows of that account are older."""
        dids, revs = [did for did, _ in repos], [rev for _, rev in repos]
        found = {did for (did,) in self._database().query(_HAVE_OLDER, [dids, revs])}
        return [did in found for did in dids]

    def gone(self, did: str, rev: str, held: Iterator[str], after: str = "") -> list[str]:
        """Return paths of rows older than a rev that are not among `held`, in order, from `after`.

        `held` are the paths of the repo's tree at that rev, ascending. At most GONE are returned:
        call again after the last one for more.
        """
        with self._database().transaction() as tx:
            found: list[str] = []
            for path in absent(self._older_paths(tx, did, rev, after), held):
                found.append(path)
                if len(found) == GONE:
                    break
            return found

    def _older_paths(self, tx: Transaction, did: str, rev: str, after: str) -> Iterator[str]:
        prefix = f"at://{did}/"
        rows = tx.query(f"{_OLDER} LIMIT {SMALL + 1}", [did, rev, prefix + after])
        if len(rows) <= SMALL:
            yield from sorted(uri[len(prefix) :] for (uri,) in rows)
            return
        ordered = f'DECLARE older NO SCROLL CURSOR FOR {_OLDER} ORDER BY uri COLLATE "C"'
        tx.execute(ordered, [did, rev, prefix + after])
        while page := tx.query(f"FETCH {SMALL} FROM older"):
            yield from (uri[len(prefix) :] for (uri,) in page)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._open is not None:
            self._open.close()
        self._open = None

    def _database(self) -> Database:
        if self._open is None:
            self._open = self._connect()
        return self._open


def _storable(text: str | None) -> str | None:
    """Bound a text and make it storable: errors, codes and hosts quote what strangers sent."""
    return None if text is None else storable(text, _MAX_TEXT)
