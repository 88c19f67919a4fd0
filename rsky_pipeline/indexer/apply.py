"""Applies a batch in one PostgreSQL transaction.

Order within it: lock the accounts, read the stored states, decide, write records and tombstones,
then each collection's tables, then what many accounts share (counts, always in the same order) and
notifications. Whoever calls acknowledges the batch after this has returned.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rsky_pipeline.atproto.datetimes import format_utc
from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.accounts import apply_accounts
from rsky_pipeline.indexer.actors import (
    MissingActors,
    create_actors,
    lock_actors,
    queue_handle_checks,
)
from rsky_pipeline.indexer.collections.shape import Collection, Put
from rsky_pipeline.indexer.counts import Counts
from rsky_pipeline.indexer.duplicates import forget_duplicates
from rsky_pipeline.indexer.events import AccountChange, IdentityChange, Reading, RepoRev
from rsky_pipeline.indexer.notifications import Notes
from rsky_pipeline.indexer.plan import Delete, Plan, make_plan
from rsky_pipeline.indexer.record_rows import fetch_states, write_records
from rsky_pipeline.indexer.repo_revs import advance_revs
from rsky_pipeline.indexer.write import Changes, Work, write_collection


@dataclass(frozen=True, slots=True)
class Applied:
    """What a batch did, for metrics: numbers of rows of `record` and more."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    touched: int = 0
    stale: int = 0
    notifications: int = 0
    new_actors: int = 0
    written: Mapping[str, int] = field(default_factory=dict)  # collection -> inserts and updates


def now_text() -> str:
    """Return the present in the normal form."""
    return format_utc(datetime.now(UTC))


def apply_batch(
    database: Database, readings: Sequence[Reading], collections: Mapping[str, Collection]
) -> Applied:
    """Apply what was read; everything or nothing is written.

    Raises DatabaseUnavailable, TransactionConflict, BadData: see `poison` for what to do then.
    """
    wanted = [reading for reading in readings if reading.change is not None or reading.rev]
    if not wanted:
        return Applied()
    dids = {reading.did for reading in wanted}
    created = 0
    while True:
        try:
            with database.transaction() as tx:
                lock_actors(tx, dids)
                return _apply(tx, wanted, collections, created)
        except MissingActors as missing:
            seen = {reading.did: reading.time for reading in reversed(wanted)}
            with database.transaction() as tx:
                created += create_actors(tx, missing.dids, seen, now_text())


def _apply(
    tx: Transaction,
    readings: Sequence[Reading],
    collections: Mapping[str, Collection],
    new_actors: int,
) -> Applied:
    changes = [reading.change for reading in readings]
    operations = [change for change in changes if isinstance(change, Put | Delete)]
    for order, operation in enumerate(operations):
        if isinstance(operation, Put):
            operation.order = order
    plan = make_plan(operations, fetch_states(tx, (item.uri for item in operations)))
    write_records(tx, plan)
    notified = _write_collections(tx, plan, collections)
    apply_accounts(tx, (change for change in changes if isinstance(change, AccountChange)))
    identities = (change.did for change in changes if isinstance(change, IdentityChange))
    queue_handle_checks(tx, dict.fromkeys(identities, True))
    advance_revs(tx, _revs(readings))
    return Applied(
        inserted=len(plan.inserts),
        updated=len(plan.updates),
        deleted=len(plan.deletes),
        touched=len(plan.touches),
        stale=plan.stale,
        notifications=notified,
        new_actors=new_actors,
        written=Counter(_nsid(put.uri) for put in (*plan.inserts, *plan.updates)),
    )


def _write_collections(tx: Transaction, plan: Plan, collections: Mapping[str, Collection]) -> int:
    work: dict[str, Work] = {}
    for put in plan.inserts:
        work.setdefault(_nsid(put.uri), Work()).inserts.append(put)
    for put in plan.updates:
        work.setdefault(_nsid(put.uri), Work()).updates.append(put)
    for delete in plan.deletes:
        work.setdefault(_nsid(delete.uri), Work()).deletes.append(delete.uri)
    changed = (put.uri for put in plan.updates)
    forget_duplicates(tx, sorted([*changed, *(item.uri for item in plan.deletes)]))
    counts, notes, now = Counts(), Notes(), now_text()
    arrivals = {put.uri: put.order for put in (*plan.inserts, *plan.updates)}
    for nsid in sorted(work):
        changes = Changes(tx, collections[nsid], counts, notes, now, arrivals)
        write_collection(changes, work[nsid])
    counts.write(tx)
    return notes.write(tx)


def _revs(readings: Iterable[Reading]) -> Iterable[RepoRev]:
    for reading in readings:
        if reading.rev is not None:
            yield reading.rev
        if isinstance(reading.change, RepoRev):
            yield reading.change


def _nsid(uri: str) -> str:
    return uri[5:].split("/", 2)[1]
