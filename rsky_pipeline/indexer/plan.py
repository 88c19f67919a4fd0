"""Decides what the operations of a batch do, without I/O.

For every uri the state of the highest rev stands, whatever the order of arrival:

- a put is stale against a stored state or a tombstone of the same or a higher rev;
- a deletion of the same rev as a put wins over it, and of two puts of one rev the greater CID:
  neither happens in an honest repo, but the result must not depend on order;
- a row without a rev (written by the official indexer) is older than everything;
- below the floor of its repo (everything up to that rev is known) a put is stale unless it is the
  state that is stored: what the repo still held at the floor is stored or on its way with that rev;
- a historical put of the state that is stored anyway only moves the rev.

All operations on one uri are folded into the one change they amount to, so that a batch ends
exactly as its operations would one by one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from rsky_pipeline.indexer.collections.shape import Put

_POST = "app.bsky.feed.post"


@dataclass(frozen=True, slots=True)
class Delete:
    """A record's deletion at a rev."""

    uri: str
    did: str
    rev: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database holds of a uri: a record, a tombstone, or (for a short time) both."""

    exists: bool = False
    rev: str | None = None
    cid: str = ""
    tombstone: str | None = None


Operation = Put | Delete
NOTHING = Stored()


@dataclass(slots=True)
class Plan:
    """What a batch changes; every uri is in at most one of the first five."""

    inserts: list[Put] = field(default_factory=list)
    updates: list[Put] = field(default_factory=list)
    touches: list[tuple[str, str]] = field(default_factory=list)  # uri, rev
    deletes: list[Delete] = field(default_factory=list)  # of rows that are there
    tombstones: list[Delete] = field(default_factory=list)  # of rows that are not
    buried: list[Delete] = field(default_factory=list)  # of both: a put may still come late
    revived: list[str] = field(default_factory=list)  # inserted uris whose tombstone is obsolete
    overtaken: list[Put] = field(default_factory=list)  # puts that a deletion undoes
    stale: int = 0


def segments(operations: Iterable[Operation]) -> list[list[Operation]]:
    """Cut operations, in order of arrival, where a deletion follows what looked at the record.

    A reply is judged by its parent and by gates. If one of these is deleted later in the batch,
    the reply has to be written first, as it would be with the deletion in the next batch. So has
    what leaves a trace when it is deleted itself.
    """
    found: list[list[Operation]] = [[]]
    looked_at: set[str] = set()
    for operation in operations:
        if isinstance(operation, Delete):
            if operation.uri in looked_at:
                found.append([])
                looked_at = set()
        else:
            looked_at.update(operation.rows.looks_at)
            if operation.rows.leaves_trace:
                looked_at.add(operation.uri)
        found[-1].append(operation)
    return found


def sort_key(operation: Operation) -> tuple[str, bool, str]:
    """Order operations on one uri: by rev, at one rev puts by CID and then the deletion."""
    if isinstance(operation, Put):
        return operation.rev, False, operation.cid
    return operation.rev, True, ""


def make_plan(
    operations: Iterable[Operation],
    stored: Mapping[str, Stored],
    floors: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """Return the changes that the operations amount to.

    `stored` is the state of their uris, `floors` has the floor (a rev) of repos that have one.
    """
    by_uri: dict[str, list[Operation]] = {}
    for operation in operations:
        by_uri.setdefault(operation.uri, []).append(operation)
    plan = Plan()
    for uri, found in by_uri.items():
        if len(found) > 1:
            found.sort(key=sort_key)
        _fold(uri, found, stored.get(uri, NOTHING), floors.get(found[0].did, ""), plan)
    return plan


def outlives_floor(uri: str) -> bool:
    """Tell whether a tombstone matters even below the floor of its repo.

    That of a post does: reposts and quotes by others may come at any time and ask for it.
    """
    return f"/{_POST}/" in uri


def _fold(uri: str, operations: list[Operation], before: Stored, floor: str, plan: Plan) -> None:
    exists, rev, cid, tombstone = before.exists, before.rev, before.cid, before.tombstone
    put: Put | None = None
    first: Put | None = None
    deletion: Delete | None = None
    for operation in operations:
        if isinstance(operation, Delete):
            known = tombstone or ""
            if operation.rev < (rev or "") if exists else operation.rev <= known:
                plan.stale += 1
                continue
            if put is not None:
                plan.overtaken.append(put)
            exists, rev, cid, tombstone = False, None, "", max(operation.rev, known)
            put, first, deletion = None, None, operation
        elif (operation.rev < floor and not (exists and cid == operation.cid)) or _is_stale(
            operation, exists, rev, cid, tombstone
        ):
            plan.stale += 1
            # Below the floor, what is not there was deleted, whether or not that was seen.
            if not exists or operation.rev <= (tombstone or ""):
                plan.overtaken.append(operation)
        else:
            if exists and cid == operation.cid and (operation.historical or rev is None):
                rev = operation.rev  # the state that is there, seen again
            else:
                first, put = put and (first or put), operation
                exists, rev, cid = True, operation.rev, operation.cid
    if exists:
        if put is not None and first is not None:
            put = replace(put, first=first)
        _keep(uri, put, rev, before, plan)
    elif deletion is not None:
        (plan.deletes if before.exists else plan.tombstones).append(deletion)
        if deletion.rev >= floor or outlives_floor(uri):
            plan.buried.append(deletion)


def _is_stale(put: Put, exists: bool, rev: str | None, cid: str, tombstone: str | None) -> bool:
    if tombstone is not None and put.rev <= tombstone:
        return True
    return exists and rev is not None and (put.rev, put.cid) <= (rev, cid)


def _keep(uri: str, put: Put | None, rev: str | None, before: Stored, plan: Plan) -> None:
    if put is None:
        if rev is not None and rev != before.rev:
            plan.touches.append((uri, rev))
        return
    if rev is not None and rev != put.rev:
        put = replace(put, rev=rev)
    if before.exists:
        plan.updates.append(put)
    else:
        plan.inserts.append(put)
        if before.tombstone is not None:
            plan.revived.append(uri)
