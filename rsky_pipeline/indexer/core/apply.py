"""From a batch of entries to committed rows.

`Applier.apply` takes a batch apart: entries that cannot be read are refused, the others go into one
transaction, and in halves down to the culprits where that fails. `apply_batch` opens it and begins
again where it has to. `apply_locked` is the decision itself, step by step. Whoever calls
acknowledges the batch after all of this has returned: an entry that is acknowledged before its rows
are committed is lost with the worker, one that is committed and not acknowledged is applied once
more, which changes nothing.

Entries of blocked accounts and collections are left out (`Applier._select`): they are acknowledged
with the others. Each transaction sees whether the blocks have changed since they were read, and is
given up then. So none of a blocked account's entries is written by a transaction that begins after
the block was committed, and none is left out after it was lifted.

Blocking, for one thread. A batch may be applied again after any failure.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from rsky_pipeline.configuration.selection import BlockKind, Selection
from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.database.errors import RowExistsError, TransactionConflictError
from rsky_pipeline.database.isolation import Isolation, retry_conflicts
from rsky_pipeline.database.marks import raise_mark
from rsky_pipeline.database.schema import blamed_on_schema
from rsky_pipeline.database.selection import load_selection, selection_version
from rsky_pipeline.indexer.accounts.actors import (
    KnownActor,
    create_actors,
    due_handles,
    lock_actors,
    queue_handle_checks,
)
from rsky_pipeline.indexer.accounts.purge import without_overtaken
from rsky_pipeline.indexer.accounts.statuses import apply_statuses
from rsky_pipeline.indexer.bsync.apply import apply_operations
from rsky_pipeline.indexer.bsync.operations import BsyncReading
from rsky_pipeline.indexer.collections.declaration import (
    Collection,
    looked_at_by_others,
)
from rsky_pipeline.indexer.collections.values import Delete, Put, collection_of
from rsky_pipeline.indexer.core.batch import (
    Applied,
    BatchItem,
    BatchOutcome,
    EntryBatch,
    RefusedEntry,
)
from rsky_pipeline.indexer.core.complete_revs import (
    advance_actor_sync,
    fetch_complete_revs,
    newly_complete,
    raise_complete_revs,
)
from rsky_pipeline.indexer.core.counts import Counts
from rsky_pipeline.indexer.core.entries import (
    AccountChange,
    IdentityChange,
    Reading,
    RepoRev,
    now_text,
)
from rsky_pipeline.indexer.core.labels import LabelReading, apply_labels
from rsky_pipeline.indexer.core.locks import ReferencesBusyError, lock_references
from rsky_pipeline.indexer.core.plan import make_plan, segments
from rsky_pipeline.indexer.core.rejected import keep_rejections
from rsky_pipeline.indexer.core.write import (
    empty_accounts,
    fetch_states,
    write_collections,
    write_records,
)
from rsky_pipeline.streams.names import BSYNC_LIVE

RECORD_KINDS = frozenset({"create", "update", "delete"})
MAX_CONFLICTS = 5  # tries of one transaction before the batch is given a longer pause


class SelectionChangedError(Exception):
    """Blocks have changed since they were read; the transaction has written nothing."""


class SelectedReadings(NamedTuple):
    """The readings of a batch without those that are left out.

    Of accounts in `known_only` there are hosting statuses only, for the rows that they have: an
    account that is deleted while it is blocked is hidden and purged all the same.
    """

    readings: list[Reading]
    known_only: frozenset[str] = frozenset()
    left_out: Mapping[str, int] = Counter()


class Applier:
    """Applies batches; entries that cannot be indexed are refused, all others are committed."""

    def __init__(
        self, collections: Mapping[str, Collection], max_deliveries: int, worker: str = ""
    ) -> None:
        """`worker` is the name in the marks of the database."""
        self._worker = worker
        self._collections = collections
        self.selection = Selection()
        self._max_deliveries = max_deliveries
        self._isolation: Isolation[BatchItem] = Isolation(lambda item: item.account)

    def apply(self, database: Database, batch: EntryBatch) -> BatchOutcome:
        """Apply a batch.

        Raises DatabaseError: then wait, and apply the same batch again.
        """
        started = time.monotonic()
        outcome = BatchOutcome()
        refusals: list[RefusedEntry] = []
        refused_others: list[RefusedEntry] = []
        items: list[BatchItem] = []
        for item in batch.items:
            delivery, reading = item.delivery, item.reading
            outcome.bodiless += delivery.fields is None
            if delivery.crashes_workers(self._max_deliveries):
                text = f"{delivery.deaths} workers ended while they tried it alone"
                outcome.refused.append(RefusedEntry(item, "crashes_worker", text))
                continue
            if delivery.fields is None:
                continue
            if isinstance(reading, LabelReading):
                refused_others += [RefusedEntry(item, e.reason, str(e)) for e in reading.refused]
            elif isinstance(reading, BsyncReading):
                if reading.refused is not None:
                    error = reading.refused
                    refused_others.append(RefusedEntry(item, error.reason, str(error)))
                    continue
            elif reading.refused is not None:
                refused = reading.refused
                refusals.append(RefusedEntry(item, refused.reason, refused.message))
                if not refused.uri:
                    continue
                # A record: its refusal is kept in a table, and its commit moves the repo's rev.
            items.append(item)

        def write(items: Sequence[BatchItem]) -> None:
            with blamed_on_schema(database):
                retry_conflicts(lambda: self._write(database, items, outcome), MAX_CONFLICTS)

        for culprit in self._isolation.apply([items], write):
            text = f"{culprit.entry.subject}: {culprit.message}"
            outcome.refused.append(RefusedEntry(culprit.entry, culprit.reason, text))
        # By the blocks that the transactions have seen: what is left out is no dead letter.
        outcome.refused += [one for one in refusals if not self._leaves_out(one.item)]
        outcome.refused += refused_others
        outcome.seconds = time.monotonic() - started
        return outcome

    def _write(self, database: Database, items: Sequence[BatchItem], outcome: BatchOutcome) -> None:
        """Write entries but those that are left out, again if blocks have changed meanwhile."""
        while True:
            try:
                self._write_selected(database, items, self._select(items), outcome)
                return
            except SelectionChangedError:
                self.selection = load_selection(database)

    def _write_selected(
        self, database: Database, items: Sequence[BatchItem], selected: SelectedReadings,
        outcome: BatchOutcome,
    ) -> None:  # fmt: skip
        """Write entries in one transaction; labels and operations of bsync, on which nothing else
        depends, in others.

        Raises SelectionChangedError where entries were selected by blocks of before.
        """
        labels = [
            label
            for item in items
            if isinstance(item.reading, LabelReading)
            for label in item.reading.labels
        ]
        operations = [
            item.reading.operation
            for item in (items if items[0].delivery.stream == BSYNC_LIVE else ())
            if isinstance(item.reading, BsyncReading) and item.reading.operation is not None
        ]
        number, version = outcome.mark, -1

        def mark(tx: Transaction) -> None:
            nonlocal number, version
            first = items[0].delivery
            number, version = raise_mark(tx, self._worker, first.stream, _entry_seconds(first.id))
            if version != self.selection.version:
                raise SelectionChangedError

        try:
            if selected.readings:
                applied = apply_batch(
                    database, selected.readings, self._collections, mark=mark,
                    known_only=selected.known_only,
                )  # fmt: skip
                outcome.applied.append(applied)
            if version < 0 and (selected.left_out or selected.known_only):
                # Nobody has looked, and they would be lost if they are not blocked any more.
                version = selection_version(database)
                if version != self.selection.version:
                    raise SelectionChangedError
            outcome.left_out.update(selected.left_out)
            if labels:
                added, removed = apply_labels(database, labels, mark)
                outcome.labels_added += added
                outcome.labels_removed += removed
            if operations:
                outcome.bsync.update(apply_operations(database, operations, mark))
            outcome.mark = number  # only of what is committed
        except TransactionConflictError:
            outcome.conflicts += 1
            raise

    def _leaves_out(self, item: BatchItem) -> bool:
        reading = item.reading
        return isinstance(reading, Reading) and self._block_of(item, reading) is not None

    def _block_of(self, item: BatchItem, reading: Reading) -> BlockKind | None:
        selection = self.selection
        queued_at = _entry_seconds(item.delivery.id) if selection.queued else None
        return selection.left_out(reading.did, collection=reading.collection, queued_at=queued_at)

    def _select(self, items: Sequence[BatchItem]) -> SelectedReadings:
        """Leave out the entries of blocked accounts, hosts and collections."""
        readings = [item.reading for item in items if isinstance(item.reading, Reading)]
        if not self.selection:
            return SelectedReadings(readings)
        kept: list[Reading] = []
        known_only, left_out = set[str](), Counter[str]()
        for item in items:
            reading = item.reading
            if not isinstance(reading, Reading):
                continue
            kind = self._block_of(item, reading)
            if kind is None:
                kept.append(reading)
            elif kind == "collection":  # its commit moves the repo's rev
                kept.append(reading._replace(change=None, refused=None))
                left_out[kind] += 1
            elif isinstance(reading.change, AccountChange):
                kept.append(reading)
                known_only.add(reading.did)
            else:
                left_out[kind] += 1
        return SelectedReadings(kept, frozenset(known_only), left_out)


def apply_batch(
    database: Database,
    readings: Sequence[Reading],
    collections: Mapping[str, Collection],
    *,
    bulk: bool = False,
    counting: bool = True,
    mark: Callable[[Transaction], None] | None = None,
    known_only: Set[str] = frozenset(),
) -> Applied:
    """Apply readings in one transaction: everything or nothing is written.

    `mark` is called in the transaction. `bulk` is for many records of few accounts: it looks first
    for accounts that have nothing yet. Without `counting` the caller counts all rows afterwards.
    Accounts in `known_only` get no row if they have none.
    Refused records are kept. Raises DatabaseError; `apply_isolated` sorts out which.

    Every account of the batch is locked first, in the order of DIDs, so that workers with
    overlapping batches wait for each other and never in a circle. Accounts without a row get one
    in a transaction of its own, before: inserting while other rows are locked could make two
    workers wait for each other. Then the transaction begins again. An account that was purged gets
    none because of an event of before its deletion.
    """
    wanted = [item for item in readings if item.change is not None or item.rev or item.refused]
    if not wanted:
        return Applied()
    dids = {reading.did for reading in wanted}  # of accounts to lock
    created = 0
    looked_at: set[str] = set()
    seen_twice = False
    while True:
        try:
            with database.transaction() as tx:
                known = lock_actors(tx, dids)
                if len(known) == len(dids):
                    _queue_handles(tx, known, wanted)
                    if mark is not None:
                        mark(tx)
                    return apply_locked(
                        tx,
                        wanted,
                        collections,
                        created,
                        bulk=bulk,
                        counting=counting,
                        looked_at=looked_at,
                    )
            missing = dids.difference(actor.did for actor in known)
            if unknown := missing & known_only:
                wanted = [reading for reading in wanted if reading.did not in unknown]
                dids -= unknown
                if not wanted:
                    return Applied(new_actors=created)
                continue
            seen = {reading.did: reading.time for reading in reversed(wanted)}
            with database.transaction() as tx:
                new = create_actors(tx, missing, seen, now_text())
                wanted, gone = without_overtaken(tx, wanted, new)
                dids -= gone
                created += len(new) - len(gone)
        except RowExistsError:  # of another writer, which does not take our locks
            if seen_twice:
                raise
            seen_twice = True  # now that it is committed, it is one of the stored states
            bulk = False
        except ReferencesBusyError as busy:
            looked_at |= busy.uris  # from now on they are waited for, in order


def apply_locked(
    tx: Transaction,
    readings: Sequence[Reading],
    collections: Mapping[str, Collection],
    new_actors: int = 0,
    *,
    bulk: bool = False,
    counting: bool = True,
    looked_at: Iterable[str] = (),
) -> Applied:
    """Apply readings in a transaction that holds the locks on all of their accounts.

    `looked_at` are records to lock beyond those that the operations name. Raises
    ReferencesBusyError, RowExistsError.

    The order matters. Locks come before the plan: the plan is made from stored states, and holds
    only as long as nobody else can change them. `record` and the tombstones come before the tables
    of collections, which look into both. Counts come last, since other workers wait for their rows
    (see `counts`). Revs and complete revs come after the records that they claim to be there.
    """
    changes = [reading.change for reading in readings]
    operations = [change for change in changes if isinstance(change, Put | Delete)]
    locks = lock_references(tx, operations, looked_at_by_others(collections.values()), looked_at)
    statuses = [change for change in changes if isinstance(change, AccountChange)]
    revs = [rev for item in readings for rev in (item.rev, item.change) if isinstance(rev, RepoRev)]
    accounts = {item.did for item in operations}
    complete = newly_complete(revs)
    complete_revs, purged = fetch_complete_revs(
        tx, accounts.union(rev.did for rev in revs), complete
    )
    if purged:
        revs = [rev for rev in revs if rev.did not in purged or rev.rev >= complete_revs[rev.did]]
    empty = empty_accounts(tx, accounts) if bulk else frozenset()
    counts, notified, plans = Counts(), 0, []
    beyond: dict[str, Set[str]] = {}
    if len(operations) > 1:
        for collection in collections.values():
            if collection.looks_beyond is not None:
                beyond.update(collection.looks_beyond(tx, operations))
    for segment in segments(operations, beyond):
        stored = fetch_states(tx, (item.uri for item in segment if item.did not in empty))
        plan = make_plan(segment, stored, complete_revs)
        write_records(tx, plan)
        arrivals = {item.uri: place for place, item in enumerate(segment)}
        notified += write_collections(tx, plan, collections, counts, locks, arrivals, empty)
        empty = frozenset()  # the next segment finds the rows of this one
        plans.append(plan)
    if counting:
        counts.write(tx)
    if statuses:
        apply_statuses(tx, statuses)
    advance_actor_sync(tx, revs)
    if complete:
        raise_complete_revs(tx, complete)
    if any(item.refused for item in readings):
        keep_rejections(tx, readings)
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


def _queue_handles(
    tx: Transaction, known: Iterable[KnownActor], readings: Sequence[Reading]
) -> None:
    """Have handles looked up: always after an identity event, otherwise now and then."""
    active = {
        reading.did: reading.time
        for reading in readings
        if reading.kind in RECORD_KINDS and not reading.historical
    }
    checks = dict.fromkeys(due_handles(known, active, now_text()), False)
    changed = (item.did for item in readings if isinstance(item.change, IdentityChange))
    queue_handle_checks(tx, checks | dict.fromkeys(changed, True))


def _entry_seconds(entry_id: str) -> float:
    """Return when an entry came into its stream, in seconds since 1970."""
    return int(entry_id.split("-")[0]) / 1_000
