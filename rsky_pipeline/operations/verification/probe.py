"""Proving that a stale write does not land: the indexer's own code on an account of nobody.

Everything happens in one transaction that is rolled back at the end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.apply import apply_batch
from rsky_pipeline.indexer.core.entries import now_text, read_entry
from rsky_pipeline.streams.event import EVENT_FIELD, Action, encode_record_event

# No account can have it: the directory makes DIDs from hashes, and nobody will find this one.
PROBE_DID = "did:plc:rskyverifyprobe234567234"
_COLLECTION = "app.bsky.actor.profile"
_URI = f"at://{PROBE_DID}/{_COLLECTION}/self"
_BASE = 1_700_000_000_000_000
_CID = "bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz45{}"


class _RolledBackError(Exception):
    pass


class _Inside:
    """Lets code that makes transactions work within one."""

    def __init__(self, database: Database, tx: Transaction) -> None:
        self._tx = tx
        self.schema = database.schema

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        yield self._tx


def probe_rev_guard(database: Database) -> list[str]:
    """Write states of one record in every wrong order; returns the failures, [] if none.

    Raises DatabaseError.
    """
    failures: list[str] = []
    try:
        with database.transaction() as tx:
            inside: Any = _Inside(database, tx)  # the part of Database that `apply_batch` uses
            failures = _probe(inside, tx)
            raise _RolledBackError
    except _RolledBackError:
        return failures


def _probe(inside: Database, tx: Transaction) -> list[str]:
    failures = []
    collections = {_COLLECTION: registry.load()[_COLLECTION]}
    for step, (action, rev, expected) in enumerate(_STEPS, start=1):
        payload = _event(action, rev)
        reading = read_entry({EVENT_FIELD: payload}, collections)
        apply_batch(inside, [reading], collections)
        found = _state(tx)
        if found != expected:
            failures.append(
                f"step {step}: after the {action} of rev {rev} there is {found or 'no record'}, "
                f"not {expected or 'no record'}"
            )
    return failures


# (action, rev, the state that must stand afterwards as (rev, name shown))
_STEPS: tuple[tuple[Action, int, tuple[int, str] | None], ...] = (
    ("create", 5, (5, "state 5")),
    ("update", 3, (5, "state 5")),  # a backfill after live: the seed's second incident
    ("create", 2, (5, "state 5")),
    ("delete", 4, (5, "state 5")),
    ("update", 6, (6, "state 6")),
    ("delete", 8, None),
    ("create", 7, None),
    ("create", 9, (9, "state 9")),
)


def _event(action: Action, rev: int) -> bytes:
    record = {"$type": _COLLECTION, "displayName": f"state {rev}"}
    return encode_record_event(
        action, seq=1, time=now_text(), did=PROBE_DID, commit=_CID.format("4"),
        rev=tid_from(_BASE + rev), collection=_COLLECTION, rkey="self",
        cid=_CID.format("abcdefghij"[rev]), record=record,
    )  # fmt: skip


def _state(tx: Transaction) -> tuple[int, str] | None:
    rows = tx.query(
        'SELECT r.rev, p."displayName" FROM record r JOIN profile p ON p.uri = r.uri '
        "WHERE r.uri = %s",
        [_URI],
    )
    revs = {tid_from(_BASE + rev): rev for _, rev, _ in _STEPS}
    return (revs.get(rows[0][0], 0), rows[0][1]) if rows else None
