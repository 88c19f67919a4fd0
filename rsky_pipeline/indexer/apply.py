"""Applies a batch in one PostgreSQL transaction.

Order within it: lock the accounts, read the stored states, decide, write records and tombstones,
then each collection's tables, then what many accounts share (counts, always in the same order) and
notifications. Whoever calls acknowledges the batch after this has returned.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.database.errors import RowExists
from rsky_pipeline.indexer.accounts import apply_accounts
from rsky_pipeline.indexer.actors import (
    Known,
    create_actors,
    due_handles,
    lock_actors,
    queue_handle_checks,
)
from rsky_pipeline.indexer.clock import now_text
from rsky_pipeline.indexer.collections.shape import Collection, Put
from rsky_pipeline.indexer.counts import Counts
from rsky_pipeline.indexer.duplicates import forget_duplicates
from rsky_pipeline.indexer.events import AccountChange, IdentityChange, Reading, RepoRev
from rsky_pipeline.indexer.floors import complete_revs, fetch_floors, raise_floors
from rsky_pipeline.indexer.notifications import Notes
from rsky_pipeline.indexer.plan import Delete, Plan, make_plan, segments
from rsky_pipeline.indexer.record_rows import empty_accounts, fetch_states, write_records
from rsky_pipeline.indexer.reference_locks import (
    ReferenceLocks,
    ReferencesBusy,
    lock_references,
)
from rsky_pipeline.indexer.rejections import keep_rejections, rejections
from rsky_pipeline.indexer.repo_revs import advance_revs
from rsky_pipeline.indexer.uris import collection_of
from rsky_pipeline.indexer.write import Changes, Work, write_collection

RECORD_KINDS = frozenset({"create", "update", "delete"})


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


def apply_batch(
    database: Database,
    readings: Sequence[Reading],
    collections: Mapping[str, Collection],
    *,
    bulk: bool = False,
) -> Applied:
    """Apply what was read; everything or nothing is written. Refused records are noted.

    `bulk` is for many records of few accounts: it looks first for accounts that have nothing yet.
    Raises DatabaseUnavailable, TransactionConflict, BadData: see `poison` for what to do then.
    """
    wanted = [item for item in readings if item.change is not None or item.rev or item.refused]
    if not wanted:
        return Applied()
    dids = {reading.did for reading in wanted}
    created = 0
    looked_at: set[str] = set()
    seen_twice = False
    while True:
        try:
            with database.transaction() as tx:
                known = lock_actors(tx, dids)
                if len(known) == len(dids):
                    _queue_handles(tx, known, wanted)
                    return apply_locked(
                        tx, wanted, collections, created, bulk=bulk, looked_at=looked_at
                    )
            missing = dids.difference(actor.did for actor in known)
            seen = {reading.did: reading.time for reading in reversed(wanted)}
            with database.transaction() as tx:
                created += create_actors(tx, missing, seen, now_text())
        except RowExists:  # of somebody who writes beside us and does not know our locks
            if seen_twice:
                raise
            seen_twice = True  # now that it is committed, it is one of the stored states
            bulk = False
        except ReferencesBusy as busy:
            looked_at |= busy.uris  # from now on they are waited for, in order


def apply_locked(
    tx: Transaction,
    readings: Sequence[Reading],
    collections: Mapping[str, Collection],
    new_actors: int = 0,
    *,
    bulk: bool = False,
    looked_at: Iterable[str] = (),
) -> Applied:
    """Apply what was read in a transaction that holds the locks on all of its accounts.

    `looked_at` are records that it looks at beyond what its operations say. Raises ReferencesBusy,
    RowExists.
    """
    changes = [reading.change for reading in readings]
    operations = [change for change in changes if isinstance(change, Put | Delete)]
    locks = lock_references(tx, operations, collections, looked_at)
    revs = list(_revs(readings))
    raised = complete_revs(revs)
    floors = fetch_floors(tx, {item.did for item in operations}, raised)
    counts, notified, plans = Counts(), 0, []
    empty = empty_accounts(tx, {item.did for item in operations}) if bulk else frozenset()
    for segment in segments(operations):
        uris = (item.uri for item in segment if item.did not in empty)
        plan = make_plan(segment, fetch_states(tx, uris), floors)
        write_records(tx, plan)
        arrivals = {item.uri: place for place, item in enumerate(segment)}
        notified += write_collections(tx, plan, collections, counts, locks, arrivals, empty)
        empty = frozenset()  # for the next segment they have what this one wrote
        plans.append(plan)
    counts.write(tx)
    apply_accounts(tx, (change for change in changes if isinstance(change, AccountChange)))
    advance_revs(tx, revs)
    raise_floors(tx, raised)
    keep_rejections(tx, rejections(readings))
    return Applied(
        inserted=sum(len(plan.inserts) for plan in plans),
        updated=sum(len(plan.updates) for plan in plans),
        deleted=sum(len(plan.deletes) for plan in plans),
        touched=sum(len(plan.touches) for plan in plans),
        stale=sum(plan.stale for plan in plans),
        notifications=notified,
        new_actors=new_actors,
        written=Counter(
            collection_of(put.uri) for plan in plans for put in (*plan.inserts, *plan.updates)
        ),
    )


def write_collections(
    tx: Transaction,
    plan: Plan,
    collections: Mapping[str, Collection],
    counts: Counts,
    locks: ReferenceLocks,
    arrivals: Mapping[str, int],
    empty: Set[str] = frozenset(),
    *,
    purging: bool = False,
) -> int:
    """Write what a plan means beyond `record`; return how many notifications were inserted.

    `empty` are accounts that had nothing before. `purging`: its records go with their account.
    """
    work: dict[str, Work] = {}
    for put in plan.inserts:
        work.setdefault(collection_of(put.uri), Work()).inserts.append(put)
    for put in plan.updates:
        work.setdefault(collection_of(put.uri), Work()).updates.append(put)
    # Others may point at a record that never was here: its deletion counts for them too.
    for delete in (*plan.deletes, *plan.tombstones):
        work.setdefault(collection_of(delete.uri), Work()).deletes.append(delete.uri)
    for put in plan.overtaken:
        if collections[collection_of(put.uri)].overtaken is not None:
            work.setdefault(collection_of(put.uri), Work()).overtaken.append(put)
    changed = (put.uri for put in plan.updates)
    forget_duplicates(tx, sorted([*changed, *(item.uri for item in plan.deletes)]))
    notes, now = Notes(), now_text()
    for nsid in sorted(work, key=lambda nsid: (collections[nsid].judges, nsid)):
        changes = Changes(
            tx, collections[nsid], counts, notes, locks, now, arrivals, empty, purging
        )
        write_collection(changes, work[nsid])
    return notes.write(tx)


def _queue_handles(tx: Transaction, known: Iterable[Known], readings: Sequence[Reading]) -> None:
    """Have handles looked at: always after an identity event, otherwise now and then."""
    active = {
        reading.did: reading.time
        for reading in readings
        if reading.kind in RECORD_KINDS and not reading.historical
    }
    checks = dict.fromkeys(due_handles(known, active, now_text()), False)
    changed = (item.did for item in readings if isinstance(item.change, IdentityChange))
    queue_handle_checks(tx, checks | dict.fromkeys(changed, True))


def _revs(readings: Iterable[Reading]) -> Iterable[RepoRev]:
    for reading in readings:
        if reading.rev is not None:
            yield reading.rev
        if isinstance(reading.change, RepoRev):
            yield reading.change
