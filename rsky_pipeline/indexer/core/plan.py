"""The plan of a batch: from operations and stored states to changes of rows, without I/O.

For every uri the state of the highest rev stands, whatever the order of arrival:

- a put is stale against a stored state or a tombstone of the same or a higher rev;
- a deletion of the same rev as a put wins over it, and of two puts of one rev the greater CID:
  neither happens in an honest repo, but the result must not depend on order;
- a row without a rev (written by the official indexer) is older than everything;
- below the complete rev of its repo (see `complete_revs`) a put is stale unless it is the state
  that is stored: records that the repo still held then are stored or on their way with that rev;
- a historical put of the state that is stored anyway only moves the rev.

All operations on one uri are folded into the one change that they amount to. This makes the size
of batches irrelevant: whether a create, its update and its deletion come in one batch or
in three, the same rows are written, and each row is counted once. The fold must therefore go
through the same states as the database would, one operation after the other in the order of revs,
and not only look at the last one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

from rsky_pipeline.indexer.collections.values import Delete, Operation, Put

_POST = "app.bsky.feed.post"


class StoredState(NamedTuple):  # one an operation: made faster than a dataclass
    """The database's state of a uri: a record, a tombstone, or (for a short time) both."""

    exists: bool = False
    rev: str | None = None
    cid: str = ""
    tombstone: str | None = None


NOTHING = StoredState()


@dataclass(slots=True)
class BatchPlan:
    """The changes of a batch; every uri is in at most one of the first five."""

    inserts: list[Put] = field(default_factory=list)
    updates: list[Put] = field(default_factory=list)
    touches: list[tuple[str, str]] = field(default_factory=list)  # uri, rev
    deletes: list[Delete] = field(default_factory=list)  # of rows that are there
    absent: list[Delete] = field(default_factory=list)  # deletions of rows that are not there
    tombstones: list[Delete] = field(default_factory=list)  # of both: a put may still come late
    revived: list[str] = field(default_factory=list)  # inserted uris whose tombstone is obsolete
    overtaken: list[Put] = field(default_factory=list)  # puts that a deletion undoes
    stale: int = 0


def segments(
    operations: Iterable[Operation], beyond: Mapping[str, Iterable[str]] = MappingProxyType({})
) -> list[list[Operation]]:
    """Cut operations, in order of arrival, where a record changes that an earlier one looked at.

    A reply is judged by its parent and by gates, and notifies the authors above it. If one of these
    is edited or deleted later in the batch, the reply has to be written first, as it would be with
    that operation in the next batch. The same holds for a record that leaves a trace when it is
    deleted itself, and for a post that is made again: its deletion has taken the feed items of its
    reposts and its quotes, whoever made them. `beyond` has further uris that records look at (see
    `Collection.looks_beyond`).
    """
    found: list[list[Operation]] = [[]]
    looked_at: set[str] = set()
    for operation in operations:
        if operation.uri in looked_at:
            found.append([])
            looked_at = set()
        if isinstance(operation, Put):
            looked_at.update(operation.rows.looks_at)
            if beyond and operation.uri in beyond:
                looked_at.update(beyond[operation.uri])
            if operation.rows.leaves_trace:
                looked_at.add(operation.uri)
        elif outlives_complete_rev(operation.uri):
            looked_at.add(operation.uri)
        found[-1].append(operation)
    return found


def make_plan(
    operations: Iterable[Operation],
    stored: Mapping[str, StoredState],
    complete_revs: Mapping[str, str] = MappingProxyType({}),
) -> BatchPlan:
    """Return the changes that the operations amount to.

    `stored` is the state of their uris, `complete_revs` that of their repos that have one.
    """
    by_uri: dict[str, list[Operation]] = {}
    for operation in operations:
        by_uri.setdefault(operation.uri, []).append(operation)
    plan = BatchPlan()
    for uri, found in by_uri.items():
        if len(found) > 1:
            found.sort(key=sort_key)
        elif uri not in stored and found[0].did not in complete_revs:
            operation = found[0]
            if isinstance(operation, Put):  # nearly all: a new record, with nothing to fold
                plan.inserts.append(operation)
                continue
        _fold(found, stored.get(uri, NOTHING), complete_revs.get(found[0].did, ""), plan)
    return plan


def sort_key(operation: Operation) -> tuple[str, bool, str]:
    """Order operations on one uri: by rev, at one rev puts by CID and then the deletion."""
    if isinstance(operation, Put):
        return operation.rev, False, operation.cid
    return operation.rev, True, ""


def outlives_complete_rev(uri: str) -> bool:
    """Return whether a tombstone matters even below the complete rev of its repo.

    That of a post does: reposts and quotes by others may come at any time and ask for it.
    """
    return f"/{_POST}/" in uri


def _fold(
    operations: list[Operation], before: StoredState, complete_rev: str, plan: BatchPlan
) -> None:
    """Add to the plan the one change that these operations on one uri amount to.

    `put` and `deletion` are the operations that made the present state. `first` is the put before
    them which notifies: an update in the same batch does not take the news from the create.
    """
    state = before
    put: Put | None = None
    first: Put | None = None
    deletion: Delete | None = None
    for operation in operations:
        if _is_stale(operation, state, complete_rev):
            plan.stale += not _is_repeated(operation, state)
            if isinstance(operation, Put) and _is_deleted(operation, state):
                plan.overtaken.append(operation)
        elif isinstance(operation, Delete):
            if put is not None:
                plan.overtaken.append(put)
            state = StoredState(tombstone=max(operation.rev, state.tombstone or ""))
            put, first, deletion = None, None, operation
        elif (
            state.exists
            and state.cid == operation.cid
            and (operation.historical or state.rev is None)
        ):  # the stored state, seen again
            state = state._replace(rev=operation.rev)
        else:
            state = StoredState(True, operation.rev, operation.cid, state.tombstone)
            first, put = put and (first or put), operation
    if state.exists:
        _plan_standing(operations[0].uri, put, first, state.rev, before, plan)
    elif deletion is not None:
        (plan.deletes if before.exists else plan.absent).append(deletion)
        if deletion.rev >= complete_rev or outlives_complete_rev(deletion.uri):
            plan.tombstones.append(deletion)


def _is_stale(operation: Operation, state: StoredState, complete_rev: str) -> bool:
    """The rev gate: an operation that the state has overtaken changes nothing."""
    exists, rev, cid, tombstone = state
    if isinstance(operation, Delete):
        return operation.rev < (rev or "") if exists else operation.rev <= (tombstone or "")
    if operation.rev < complete_rev and not (exists and cid == operation.cid):
        return True
    if tombstone is not None and operation.rev <= tombstone:
        return True
    return exists and rev is not None and (operation.rev, operation.cid) <= (rev, cid)


def _is_repeated(operation: Operation, state: StoredState) -> bool:
    """Return whether a fetched repo only shows the stored record again.

    It does whenever a repo is fetched once more: no older state was kept from being written.
    """
    return (
        isinstance(operation, Put)
        and operation.historical
        and state.exists
        and state.cid == operation.cid
    )


def _is_deleted(put: Put, state: StoredState) -> bool:
    """Return whether a stale put was undone by a deletion, and not by a newer put.

    Below the complete rev, a record that is not there was deleted, whether or not that was seen.
    """
    return not state.exists or put.rev <= (state.tombstone or "")


def _plan_standing(
    uri: str,
    put: Put | None,
    first: Put | None,
    rev: str | None,
    before: StoredState,
    plan: BatchPlan,
) -> None:
    """Plan the row of a record that stands; `rev` is that of its newest sighting."""
    if put is None:
        if rev is not None and rev != before.rev:
            plan.touches.append((uri, rev))
        return
    if first is not None:
        put = replace(put, first=first)
    if rev is not None and rev != put.rev:
        put = replace(put, rev=rev)
    if before.exists:
        plan.updates.append(put)
        return
    plan.inserts.append(put)
    if before.tombstone is not None:
        plan.revived.append(uri)
