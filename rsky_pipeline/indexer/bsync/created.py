"""The rows of bookmarks, drafts and subscriptions, which only a CREATE makes.

Officially a CREATE fails where its key has a row, or another bookmark (subscription) of the account
has the same subject; nothing makes up for that when the row is deleted. So whether a CREATE holds
depends on those before it. Every CREATE is kept with its place and that of the first DELETE of its
key afterwards. Which of them hold follows from that alone (`hold`), so a CREATE or DELETE that
comes late changes what it would have changed in its time.

An UPDATE changes the row that there is, and never makes one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, NamedTuple

from rsky_pipeline.database.bulk import transpose
from rsky_pipeline.database.connection import Transaction
from rsky_pipeline.indexer.bsync.operations import (
    BOOKMARK,
    DRAFT,
    SUBSCRIPTION,
    WITH_ROWS,
    Item,
    Operation,
    RowContent,
    read_content,
)

_CREATED = """
SELECT c.actor, c.namespace, c.key, c.created, c.deleted, c.subject, c.holds
FROM unnest(%b::text[], %b::text[], %b::text[]) AS n(actor, namespace, key)
JOIN rsky_pipeline.bsync_created c
    ON c.actor = n.actor AND c.namespace = n.namespace AND c.key = n.key
"""
_OF_SUBJECTS = """
SELECT DISTINCT c.actor, c.namespace, c.key
FROM unnest(%b::text[], %b::text[], %b::text[]) AS n(actor, namespace, subject)
JOIN rsky_pipeline.bsync_created c
    ON c.actor = n.actor AND c.namespace = n.namespace AND c.subject = n.subject
WHERE c.subject <> ''
"""
_KEEP_CREATED = """
INSERT INTO rsky_pipeline.bsync_created (actor, namespace, key, created, deleted, subject, holds)
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::bigint[], %b::bigint[], %b::text[],
    %b::boolean[])
ON CONFLICT (actor, namespace, key, created) DO UPDATE
SET deleted = EXCLUDED.deleted, holds = EXCLUDED.holds
"""
_PRIVATE = """
SELECT p."actorDid", p.namespace, p.key, p.payload, p."indexedAt", p."updatedAt"
FROM unnest(%b::text[], %b::text[], %b::text[]) AS n(actor, namespace, key)
JOIN private_data p
    ON p."actorDid" = n.actor AND p.namespace = n.namespace AND p.key = n.key
"""
_TABLES = {BOOKMARK: "bookmark", DRAFT: "draft", SUBSCRIPTION: "activity_subscription"}
_DELETE = {
    namespace: f"""
DELETE FROM {table} t USING unnest(%b::text[], %b::text[]) AS n(creator, key)
WHERE t.creator = n.creator AND t.key = n.key
RETURNING {'t."subjectUri"' if namespace == BOOKMARK else "t.key"}
"""
    for namespace, table in _TABLES.items()
}
# A row that somebody else has written for the same key or subject stands.
_INSERT = {
    BOOKMARK: """
INSERT INTO bookmark (creator, key, "indexedAt", "subjectUri", "subjectCid")
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[])
ON CONFLICT DO NOTHING
""",
    SUBSCRIPTION: """
INSERT INTO activity_subscription (creator, key, "indexedAt", "subjectDid", post, reply)
SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::boolean[], %b::boolean[])
ON CONFLICT DO NOTHING
""",
    DRAFT: """
INSERT INTO draft (creator, key, "createdAt", "updatedAt", payload)
SELECT n.creator, n.key, n.time, n.time, n.payload
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[]) AS n(creator, key, time, payload)
ON CONFLICT DO NOTHING
""",
}
_UPDATE = {
    SUBSCRIPTION: """
UPDATE activity_subscription t SET "indexedAt" = n.time, post = n.post, reply = n.reply
FROM unnest(%b::text[], %b::text[], %b::text[], %b::boolean[], %b::boolean[])
    AS n(creator, key, time, post, reply)
WHERE t.creator = n.creator AND t.key = n.key
""",
    DRAFT: """
UPDATE draft t SET "updatedAt" = n.time, payload = n.payload
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[]) AS n(creator, key, time, payload)
WHERE t.creator = n.creator AND t.key = n.key
""",
}
# Counted anew, never added up. Locks on counts are taken last, in the order of uris, as by batches.
_RECOUNT = """
INSERT INTO post_agg (uri, "bookmarkCount")
SELECT n.uri, (SELECT count(*) FROM bookmark b WHERE b."subjectUri" = n.uri)
FROM unnest(%b::text[]) AS n(uri) ORDER BY n.uri
ON CONFLICT (uri) DO UPDATE SET "bookmarkCount" = EXCLUDED."bookmarkCount"
"""


@dataclass(slots=True)
class Created:
    """A CREATE: its place, that of the next DELETE of its key (0: none), and whether it holds."""

    item: Item
    created: int
    deleted: int
    subject: str  # '' of drafts, which may all be alike
    holds: bool = False


def hold(created: Iterable[Created]) -> None:
    """Decide which CREATEs hold; all that share keys or subjects must be given."""
    holders: dict[tuple[str, ...], Created] = {}
    for each in sorted(created, key=attrgetter("created")):
        item = each.item
        names: list[tuple[str, ...]] = [item]
        if each.subject:
            names.append((item.actor, item.namespace, "subject", each.subject))
        others = [holders[name] for name in names if name in holders]
        each.holds = all(0 < other.deleted < each.created for other in others)
        if each.holds:
            holders.update(dict.fromkeys(names, each))


class _Row(NamedTuple):
    """A row to be written."""

    item: Item
    time: str
    payload: str
    content: RowContent


@dataclass(slots=True)
class _Changes:
    deleted: set[Item] = field(default_factory=set)
    inserted: list[_Row] = field(default_factory=list)
    updated: list[_Row] = field(default_factory=list)
    counted: set[str] = field(default_factory=set)  # uris of bookmarks


def write_created(
    tx: Transaction, operations: Sequence[Operation], before: Mapping[Item, tuple[int, int]]
) -> None:
    """Write what operations of these namespaces change, after their private data is written.

    `operations` are in their order; `before` has the places of the last UPDATE and DELETE of each
    item until now.
    """
    known = _fetch(tx, {each.item for each in operations})
    stood = {item: _standing(several) for item, several in known.items()}
    new = _take_in(operations, known, before)
    for item in _complete(tx, known):
        stood[item] = _standing(known[item])
    old = {item: None if each is None else each.created for item, each in stood.items()}
    hold(each for several in known.values() for each in several)
    deletes = {
        each.item
        for each in operations
        if each.method == "delete" and each.place > before.get(each.item, (0, 0))[1]
    }
    changes = _Changes(deleted=deletes - known.keys())
    late: list[Item] = []  # their content is that of private data
    for item, several in known.items():
        standing = _standing(several)
        news = [each for each in several if each.holds and (item, each.created) in new]
        if old.get(item) != (None if standing is None else standing.created):
            if old.get(item) is not None or item in deletes:
                changes.deleted.add(item)
            if standing is not None:
                news.append(standing)
                made = new.get((item, standing.created))
                if made is not None:
                    changes.inserted.append(made)
                if made is None or before.get(item, (0, 0))[0] > standing.created:
                    late.append(item)
        if item.namespace == BOOKMARK:
            changes.counted.update(each.subject for each in news)
    _add_late(tx, changes, late, known)
    _add_updates(changes, operations, known, before)
    rows = [
        (*each.item, each.created, each.deleted, each.subject, each.holds)
        for several in known.values()
        for each in several
    ]
    if rows:
        tx.execute(_KEEP_CREATED, transpose(sorted(rows)))
    _write(tx, changes)


def _take_in(
    operations: Sequence[Operation], known: dict[Item, list[Created]],
    before: Mapping[Item, tuple[int, int]],
) -> dict[tuple[Item, int], _Row]:  # fmt: skip
    """Add CREATEs and DELETEs to the known ones; return the rows of new CREATEs by item and place.

    A CREATE whose payload does not fit makes no row, whatever comes later.
    """
    new: dict[tuple[Item, int], _Row] = {}
    ends: dict[Item, set[int]] = {}
    for each in operations:
        item = each.item
        several = known.get(item, [])
        if each.method == "delete":
            ends.setdefault(item, set()).add(each.place)
        elif each.method == "create" and all(one.created != each.place for one in several):
            content = read_content(item.namespace, each.payload)
            if content is not None:
                known.setdefault(item, several).append(
                    Created(item, each.place, 0, content.subject)
                )
                new[item, each.place] = _Row(item, each.time, each.payload, content)
    for item, several in known.items():
        places = ends.get(item, set()) | {before.get(item, (0, 0))[1]}
        places.update(one.deleted for one in several)
        for one in several:
            one.deleted = min((place for place in places if place > one.created), default=0)
    return new


def _complete(tx: Transaction, known: dict[Item, list[Created]]) -> list[Item]:
    """Add the CREATEs that share subjects or keys with those that are known; return their items."""
    added: list[Item] = []
    looked_at: set[tuple[str, str, str]] = set()
    while True:
        subjects = {
            (item.actor, item.namespace, each.subject)
            for item, several in known.items()
            for each in several
            if each.subject
        } - looked_at
        if not subjects:
            return added
        looked_at |= subjects
        rows = tx.query(_OF_SUBJECTS, transpose(sorted(subjects)))
        if items := {Item(*row) for row in rows} - known.keys():
            known.update(_fetch(tx, items))
            added += items


def _fetch(tx: Transaction, items: Iterable[Item]) -> dict[Item, list[Created]]:
    found: dict[Item, list[Created]] = {}
    for actor, namespace, key, *rest in tx.query(_CREATED, transpose(sorted(items))):
        item = Item(actor, namespace, key)
        found.setdefault(item, []).append(Created(item, *rest))
    return found


def _standing(several: Iterable[Created]) -> Created | None:
    return next((each for each in several if each.holds and not each.deleted), None)


def _add_late(
    tx: Transaction, changes: _Changes, late: Sequence[Item], known: Mapping[Item, list[Created]]
) -> None:
    """Have rows whose operations were applied before get their content from private data.

    So it is for a CREATE that comes after its UPDATE, and one that holds only now.
    """
    if not late:
        return
    inserted = {row.item for row in changes.inserted}
    for actor, namespace, key, payload, made, updated in tx.query(_PRIVATE, transpose(late)):
        item = Item(actor, namespace, key)
        content, standing = read_content(namespace, payload, "update"), _standing(known[item])
        if content is None or standing is None:
            continue
        row = _Row(item, made, payload, replace(content, subject=standing.subject))
        if item not in inserted and (content.cid or namespace != BOOKMARK):
            changes.inserted.append(row)
        if updated != made or item in inserted:
            changes.updated.append(row._replace(time=updated))


def _add_updates(
    changes: _Changes, operations: Sequence[Operation], known: Mapping[Item, list[Created]],
    before: Mapping[Item, tuple[int, int]],
) -> None:  # fmt: skip
    """Add the last UPDATE of each row that was there before it.

    An item of which no CREATE is known may have a row of before all readings.
    """
    last: dict[Item, Operation] = {}
    for each in operations:
        if each.method == "update" and each.place > before.get(each.item, (0, 0))[0]:
            last[each.item] = each
    for item, each in last.items():
        standing = _standing(known.get(item, ()))
        content = read_content(item.namespace, each.payload, "update")
        theirs = item not in known if standing is None else standing.created < each.place
        if theirs and content is not None:
            changes.updated.append(_Row(item, each.time, each.payload, content))


def _write(tx: Transaction, changes: _Changes) -> None:
    """Delete, insert, update, in this order; then count the bookmarks of posts anew."""
    for namespace in WITH_ROWS:
        gone = sorted((it.actor, it.key) for it in changes.deleted if it.namespace == namespace)
        if gone:
            uris = tx.query(_DELETE[namespace], transpose(gone))
            if namespace == BOOKMARK:
                changes.counted.update(uri for (uri,) in uris)
        inserted = [row for row in changes.inserted if row.item.namespace == namespace]
        if inserted:
            tx.execute(_INSERT[namespace], transpose(map(_columns, inserted)))
        updated = {row.item: row for row in changes.updated if row.item.namespace == namespace}
        if updated and namespace in _UPDATE:
            rows = map(_columns, updated.values())
            columns = transpose(rows)
            if namespace == SUBSCRIPTION:
                del columns[3]  # the subject stays
            tx.execute(_UPDATE[namespace], columns)
    if changes.counted:
        tx.execute(_RECOUNT, (sorted(changes.counted),))


def _columns(row: _Row) -> tuple[Any, ...]:
    item, content = row.item, row.content
    start = (item.actor, item.key, row.time)
    if item.namespace == BOOKMARK:
        return (*start, content.subject, content.cid)
    if item.namespace == SUBSCRIPTION:
        return (*start, content.subject, content.post, content.reply)
    return (*start, row.payload)
