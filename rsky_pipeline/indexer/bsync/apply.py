"""From operations of bsync to rows: those of the official AppView, in whatever order they come.

An operation that is older than the last one about its item (`bsync_applied`) has no effect: so a
replay, a late id, another worker or other batches give the same rows. A batch is folded before it
is written: of each item the last operation counts, and whether a deletion is among the others, for
then its row begins anew. A row that goes on keeps the time at which it was made.

Three rules go over single items. "Unmute all" is one item of its actor, and overtakes older mutes
of accounts and lists. Of two bookmarks or subscriptions of one subject the first one stands
(`created`). The columns about an account's age are an item each.

Everything is done by one worker at a time, under a lock of its own: operations are few. The order
of the other locks is that of all batches: accounts first, counts of posts last.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rsky_pipeline.database.bulk import transpose
from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.accounts.actors import lock_actors
from rsky_pipeline.indexer.bsync.created import write_created
from rsky_pipeline.indexer.bsync.operations import (
    MUTES,
    WITH_ROWS,
    Item,
    Operation,
    read_age,
)
from rsky_pipeline.indexer.core.locks import BSYNC, NAMESPACE

_LOCK = f"SELECT pg_advisory_xact_lock({NAMESPACE}, {BSYNC})::text"
_APPLIED = """
SELECT a.actor, a.namespace, a.key, a.place, a.updated, a.deleted
FROM unnest(%b::text[], %b::text[], %b::text[]) AS n(actor, namespace, key)
JOIN rsky_pipeline.bsync_applied a
    ON a.log = %s AND a.actor = n.actor AND a.namespace = n.namespace AND a.key = n.key
"""
_NOTE_APPLIED = """
INSERT INTO rsky_pipeline.bsync_applied (actor, namespace, key, place, updated, deleted, log)
SELECT n.*, %s FROM unnest(%b::text[], %b::text[], %b::text[], %b::bigint[], %b::bigint[],
    %b::bigint[]) AS n
ON CONFLICT (actor, log, namespace, key) DO UPDATE
SET place = EXCLUDED.place, updated = EXCLUDED.updated, deleted = EXCLUDED.deleted
"""
_NOTE_LOG = """
INSERT INTO rsky_pipeline.bsync_log AS known (log, place, digest, history)
VALUES (%s, %s, %s, %s)
ON CONFLICT (log) DO UPDATE
SET place = EXCLUDED.place, digest = EXCLUDED.digest, history = EXCLUDED.history, applied_at = now()
WHERE known.place <= EXCLUDED.place
"""

_COLUMNS = {"mute": "subjectDid", "list_mute": "listUri", "thread_mute": "rootUri"}
# A mute that a later operation made stays.
_CLEAR = {
    table: f"""
DELETE FROM {table} m USING unnest(%b::text[], %b::bigint[]) AS n(actor, place)
WHERE m."mutedByDid" = n.actor AND NOT EXISTS (
    SELECT FROM rsky_pipeline.bsync_applied a
    WHERE a.log = 'mute' AND a.actor = n.actor AND a.namespace = '{table}'
        AND a.key = m."{column}" AND a.place > n.place)
"""
    for table, column in _COLUMNS.items()
}
_UNMUTE = {
    table: f"""
DELETE FROM {table} m USING unnest(%b::text[], %b::text[]) AS n(actor, subject)
WHERE m."mutedByDid" = n.actor AND m."{column}" = n.subject
"""
    for table, column in _COLUMNS.items()
}
_MUTE = {
    "mute": """
INSERT INTO mute ("mutedByDid", "subjectDid", "createdAt", "onlyReposts", "onlyQuoteposts")
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::boolean[], %b::boolean[])
ON CONFLICT ("mutedByDid", "subjectDid") DO UPDATE
SET "onlyReposts" = EXCLUDED."onlyReposts", "onlyQuoteposts" = EXCLUDED."onlyQuoteposts"
""",
    **{
        table: f"""
INSERT INTO {table} ("mutedByDid", "{_COLUMNS[table]}", "createdAt")
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[])
ON CONFLICT DO NOTHING
"""
        for table in MUTES[1:]
    },
}
# Who sets a priority first has seen everything until then, as officially.
_PRIORITIES = """
INSERT INTO actor_state (did, "lastSeenNotifs", "priorityNotifs")
SELECT * FROM unnest(%b::text[], %b::text[], %b::boolean[])
ON CONFLICT (did) DO UPDATE SET "priorityNotifs" = EXCLUDED."priorityNotifs"
"""
_FORGET_DATA = """
DELETE FROM private_data p
USING unnest(%b::text[], %b::text[], %b::text[]) AS n(actor, namespace, key)
WHERE p."actorDid" = n.actor AND p.namespace = n.namespace AND p.key = n.key
"""
_KEEP_DATA = """
INSERT INTO private_data ("actorDid", namespace, key, payload, "indexedAt", "updatedAt")
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[])
ON CONFLICT ("actorDid", namespace, key) DO UPDATE
SET payload = EXCLUDED.payload, "updatedAt" = EXCLUDED."updatedAt"
"""

AGE_COLUMNS = ("status", "initiated", "access", "country", "region")
_AGES = f"""
SELECT did, {", ".join(f"{name}, {name}_place" for name in AGE_COLUMNS)}
FROM rsky_pipeline.bsync_age_assurance WHERE did = ANY(%b::text[])
"""
_KEEP_AGES = f"""
INSERT INTO rsky_pipeline.bsync_age_assurance
    (did, {", ".join(f"{name}, {name}_place" for name in AGE_COLUMNS)}, written)
SELECT n.*, false FROM unnest(%b::text[], {", ".join(["%b::text[], %b::bigint[]"] * 5)}) AS n
ON CONFLICT (did) DO UPDATE SET written = false,
    {
    ", ".join(
        f"{name} = EXCLUDED.{name}, {name}_place = EXCLUDED.{name}_place" for name in AGE_COLUMNS
    )
}
"""
_WAITING_AGES = """
SELECT did FROM rsky_pipeline.bsync_age_assurance w
WHERE NOT written AND EXISTS (SELECT FROM actor a WHERE a.did = w.did)
ORDER BY did LIMIT 1000
"""
# What no operation has set stays as it is.
_WRITE_AGES = """
WITH known AS (
    UPDATE actor a SET "ageAssuranceStatus" = COALESCE(n.status, a."ageAssuranceStatus"),
        "ageAssuranceLastInitiatedAt" = COALESCE(n.initiated, a."ageAssuranceLastInitiatedAt"),
        "ageAssuranceAccess" = COALESCE(n.access, a."ageAssuranceAccess"),
        "ageAssuranceCountryCode" = COALESCE(n.country, a."ageAssuranceCountryCode"),
        "ageAssuranceRegionCode" = COALESCE(n.region, a."ageAssuranceRegionCode")
    FROM rsky_pipeline.bsync_age_assurance n
    WHERE n.did = a.did AND NOT n.written AND n.did = ANY(%b::text[])
    RETURNING a.did
)
UPDATE rsky_pipeline.bsync_age_assurance w SET written = true FROM known WHERE w.did = known.did
"""


@dataclass(slots=True)
class ItemPlaces:
    """The places of an item: of its last operation, UPDATE and DELETE."""

    place: int = -1
    updated: int = 0
    deleted: int = 0

    def note(self, operation: Operation) -> bool:
        """Note an operation; return whether it is newer than all before."""
        if operation.method == "update":
            self.updated = max(self.updated, operation.place)
        elif operation.method == "delete":
            self.deleted = max(self.deleted, operation.place)
        if operation.place <= self.place:
            return False
        self.place = operation.place
        return True


@dataclass(slots=True)
class Fold:
    """What a batch makes of an item: its last state, or None if that is a deletion."""

    last: Operation | None = None
    since: str = ""  # time of the first operation since the last deletion
    removed: bool = False  # a deletion was among them, so the row begins anew

    def add(self, operation: Operation) -> None:
        """Add the next operation."""
        if operation.method == "delete":
            self.remove()
        else:
            self.since = self.since if self.last is not None else operation.time
            self.last = operation

    def remove(self) -> None:
        """Add the deletion of the item."""
        self.last, self.removed = None, True


Counts = Counter[tuple[str, str]]  # operations by log and outcome
APPLIED, OVERTAKEN = OUTCOMES = ("applied", "overtaken")  # the latter: replays, and late ones


def apply_operations(
    database: Database,
    operations: Sequence[Operation],
    mark: Callable[[Transaction], None] | None = None,
) -> Counts:
    """Apply operations in one transaction, in which `mark` is called; return their outcomes.

    Raises DatabaseError.
    """
    counts = Counts()
    unique = {(each.log, each.place): each for each in operations}
    logs: dict[str, list[Operation]] = {}
    for place in sorted(unique):
        logs.setdefault(place[0], []).append(unique[place])
    with database.transaction() as tx:
        tx.query(_LOCK)
        if "operation" in logs:
            _apply_ages(tx, logs["operation"])
        _apply_mutes(tx, logs.get("mute", ()), counts)
        _apply_priorities(tx, logs.get("notif", ()), counts)
        _apply_private(tx, logs.get("operation", ()), counts)
        for log, found in logs.items():
            last = found[-1]
            tx.execute(_NOTE_LOG, (log, last.place, last.digest, last.history))
        if mark is not None:
            mark(tx)
    return counts


def write_waiting_ages(database: Database) -> int:
    """Set the columns about the age of accounts that have got their row since."""
    with database.transaction() as tx:
        tx.query(_LOCK)
        dids = [did for (did,) in tx.query(_WAITING_AGES)]
        if dids:
            lock_actors(tx, dids)
            tx.execute(_WRITE_AGES, (dids,))
    return len(dids)


def _apply_mutes(tx: Transaction, operations: Sequence[Operation], counts: Counts) -> None:
    if not operations:
        return
    items = {each.item for each in operations}
    applied = _fetch_applied(tx, "mute", items | {Item(item.actor, "", "") for item in items})
    folds: dict[Item, Fold] = {}
    cleared: dict[str, int] = {}
    for each in operations:
        item = each.item
        if not applied.setdefault(item, ItemPlaces()).note(each):
            counts["mute", OVERTAKEN] += 1
            continue
        counts["mute", APPLIED] += 1
        if each.method == "clear":
            cleared[item.actor] = each.place
            for other, fold in folds.items():
                if other.actor == item.actor and other.namespace != "thread_mute":
                    fold.remove()
            continue
        clear = applied.get(Item(item.actor, "", ""))
        late = item.namespace != "thread_mute" and clear is not None and clear.place > each.place
        if not late:
            folds.setdefault(item, Fold()).add(each)
    if cleared:
        for table in MUTES[:2]:
            tx.execute(_CLEAR[table], transpose(sorted(cleared.items())))
    for table in MUTES:
        of_table = {item: fold for item, fold in sorted(folds.items()) if item.namespace == table}
        gone = [(item.actor, item.key) for item, fold in of_table.items() if fold.removed]
        if gone:
            tx.execute(_UNMUTE[table], transpose(gone))
        rows = [
            (item.actor, item.key, fold.since, fold.last.only_reposts, fold.last.only_quoteposts)
            for item, fold in of_table.items()
            if fold.last is not None
        ]
        if rows:
            columns = transpose(rows)
            tx.execute(_MUTE[table], columns if table == "mute" else columns[:3])
    _note_applied(tx, "mute", applied)


def _apply_priorities(tx: Transaction, operations: Sequence[Operation], counts: Counts) -> None:
    wanted = [each for each in operations if each.priority is not None]
    counts["notif", APPLIED] += len(operations) - len(wanted)  # they say nothing
    if not wanted:
        return
    applied = _fetch_applied(tx, "notif", {each.item for each in wanted})
    folds = _fold("notif", wanted, applied, counts)
    rows = [
        (item.actor, fold.since, fold.last.priority)
        for item, fold in sorted(folds.items())
        if fold.last is not None
    ]
    if rows:
        tx.execute(_PRIORITIES, transpose(rows))
    _note_applied(tx, "notif", applied)


def _apply_private(tx: Transaction, operations: Sequence[Operation], counts: Counts) -> None:
    if not operations:
        return
    applied = _fetch_applied(tx, "operation", {each.item for each in operations})
    before = {item: ItemPlaces(it.place, it.updated, it.deleted) for item, it in applied.items()}
    folds = _fold("operation", operations, applied, counts)
    gone = sorted(item for item, fold in folds.items() if fold.removed)
    if gone:
        tx.execute(_FORGET_DATA, transpose(gone))
    rows = [
        (*item, fold.last.payload, fold.since, fold.last.time)
        for item, fold in sorted(folds.items())
        if fold.last is not None
    ]
    if rows:
        tx.execute(_KEEP_DATA, transpose(rows))
    _note_applied(tx, "operation", applied)
    with_rows = [each for each in operations if each.item.namespace in WITH_ROWS]
    if with_rows:
        write_created(
            tx, with_rows, {item: (it.updated, it.deleted) for item, it in before.items()}
        )


def _apply_ages(tx: Transaction, operations: Sequence[Operation]) -> None:
    """Set the columns of `actor` about an account's age: of each the last operation stands."""
    found = [(each, columns) for each in operations if (columns := read_age(each))]
    if not found:
        return
    dids = sorted({each.item.actor for each, _ in found})
    known: dict[str, dict[str, tuple[str | None, int]]] = {
        did: {name: (row[2 * at], row[2 * at + 1]) for at, name in enumerate(AGE_COLUMNS)}
        for did, *row in tx.query(_AGES, (dids,))
    }
    changed: set[str] = set()
    for each, columns in found:
        did = each.item.actor
        values = known.setdefault(did, dict.fromkeys(AGE_COLUMNS, (None, -1)))
        for name, value in columns.items():
            if values[name][1] < each.place:
                values[name] = value, each.place
                changed.add(did)
    if changed:
        lock_actors(tx, changed)
        rows = [
            (did, *(part for name in AGE_COLUMNS for part in known[did][name]))
            for did in sorted(changed)
        ]
        tx.execute(_KEEP_AGES, transpose(rows))
        tx.execute(_WRITE_AGES, (sorted(changed),))


def _fold(
    log: str, operations: Iterable[Operation], applied: dict[Item, ItemPlaces], counts: Counts
) -> dict[Item, Fold]:
    """Fold operations, in their order, but those that are overtaken."""
    folds: dict[Item, Fold] = {}
    for each in operations:
        if applied.setdefault(each.item, ItemPlaces()).note(each):
            folds.setdefault(each.item, Fold()).add(each)
            counts[log, APPLIED] += 1
        else:
            counts[log, OVERTAKEN] += 1
    return folds


def _fetch_applied(tx: Transaction, log: str, items: Iterable[Item]) -> dict[Item, ItemPlaces]:
    rows = tx.query(_APPLIED, (*transpose(sorted(items)), log))
    return {Item(*row[:3]): ItemPlaces(*row[3:]) for row in rows}


def _note_applied(tx: Transaction, log: str, applied: Mapping[Item, ItemPlaces]) -> None:
    rows = [(*item, it.place, it.updated, it.deleted) for item, it in sorted(applied.items())]
    tx.execute(_NOTE_APPLIED, (log, *transpose(rows)))
