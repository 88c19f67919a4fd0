"""Compares the rows that an account's records make with the rows that are stored.

Which rows a record makes is not repeated here: the columns and further rows come from
`Collection.read`, notifications from `Collection.notify`, and what `Collection.finish` writes from
`Collection.finished`. A record is damaged if its JSON is not the content that its CID names; the
rows of such a record are not known.

Some of what was written depends on the moment, and cannot be known afterwards. Then the stored
state counts: results of a gate that has changed since, and whether a record that came with history
or from another indexer ought to have notified somebody (`_is_news`).

All of it reads only, in a transaction of the caller: consistent in a snapshot (`db compare`), or
under the lock on the account (`rebuild`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple

import orjson

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.dagjson import from_json
from rsky_pipeline.atproto.datetimes import rev_time
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.syntax import is_rev
from rsky_pipeline.database.bulk import quoted, transpose
from rsky_pipeline.database.connection import Database, Transaction
from rsky_pipeline.indexer.collections.declaration import Collection, Finished
from rsky_pipeline.indexer.collections.fields import InvalidRecordError
from rsky_pipeline.indexer.collections.notifications import without_muted
from rsky_pipeline.indexer.collections.values import (
    CollectionTable,
    Notification,
    Put,
    SideTable,
    collection_of,
)
from rsky_pipeline.indexer.core.duplicates import Key, NaturalKey
from rsky_pipeline.indexer.core.statements import GENERIC, side_rows_sql

PAGE_RECORDS = 1_000
RECORD, DUPLICATES, NOTIFICATIONS = "record", "duplicate_record", "notification"
MAX_SHOWN = 60  # characters of a value
# A live commit is seen soon after its rev was made; a whole repo has the rev of its last commit.
LIVE_WITHIN_MINUTES = 10

_SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_URIS = "SELECT uri FROM record WHERE did = %s"
_RECORDS = """
SELECT uri, did, cid, rev, "indexedAt", json FROM record WHERE uri = ANY(%b::text[])
"""
_REVS = """
SELECT (SELECT rev FROM rsky_pipeline.repo_floor WHERE did = %s),
    (SELECT rev FROM rsky_pipeline.backfill_repo WHERE did = %s),
    (SELECT "repoRev" FROM actor_sync WHERE did = %s)
"""
_REJECTED = "SELECT uri, cid FROM rsky_pipeline.rejected_record WHERE did = %s"
_WAITING = """
SELECT uri, cid, "duplicateOf", "indexedAt" FROM duplicate_record WHERE uri = ANY(%b::text[])
"""
_NOTIFICATIONS = """
SELECT id, "recordUri", did, reason, "reasonSubject", "recordCid", author, "sortAt"
FROM notification WHERE "recordUri" = ANY(%b::text[]) ORDER BY id
"""
_POSTS = "SELECT uri FROM post WHERE uri = ANY(%b::text[])"
# A record that once waited for an older one is no news when that one goes.
_WAITED = """
SELECT n.uri FROM unnest(%b::text[], %b::text[]) AS n(uri, rev) WHERE EXISTS (
    SELECT FROM (
        SELECT o.uri, o.rev FROM record o WHERE o.did = %s
        UNION ALL SELECT t.uri, t.rev FROM rsky_pipeline.tombstone t WHERE t.did = %s
    ) other
    WHERE other.rev > n.rev AND other.uri COLLATE "C" < n.uri
        AND split_part(other.uri, '/', 4) = split_part(n.uri, '/', 4))
"""
_NOTIFIED = """
FROM (SELECT "recordUri" AS uri FROM notification WHERE author = %s) x
WHERE split_part(x.uri, '/', 4) <> ALL(%b::text[])"""
_PURGED = "SELECT did FROM rsky_pipeline.repo_floor WHERE did = ANY(%b::text[]) AND purged"
_UNRECORDED = "NOT EXISTS (SELECT FROM record r WHERE r.uri = x.uri)"
_DELETED = "FROM rsky_pipeline.tombstone d JOIN {} ON {} = d.uri WHERE d.did = %s"


@dataclass(frozen=True, slots=True)
class RowDifference:
    """A row that is not what the records say; `kind` is missing, extra, different or damaged."""

    table: str
    kind: str
    uri: str  # of the record
    detail: str = ""


class Revs(NamedTuple):
    """The revs of a repo that decide what is known about its records."""

    whole: str  # at which it was last brought in as a whole; "" if never
    newest: str  # of the newest commit of which everything is applied


@dataclass(slots=True)
class NotificationErrors:
    """Notifications of some records that are wrong, and those that are missing."""

    wrong: list[tuple[int, str, str]] = field(default_factory=list)  # id, uri, reason of the row
    missing: list[tuple[Put, Notification]] = field(default_factory=list)


def compare_rows(
    snapshot: Callable[[], AbstractContextManager[Transaction]],
    did: str,
    collections: Mapping[str, Collection],
) -> Iterator[tuple[int, list[RowDifference]]]:
    """Compare all rows that an account's records of these collections make.

    Yields the number of records of a page, and its differences. `snapshot` is entered for each
    page. If it is another one each time, a record that stood for others in an earlier page may be
    gone: then they differ although they are right.
    """
    by_collection: dict[str, list[str]] = {}
    with snapshot() as tx:
        for (uri,) in tx.query(_URIS, (did,)):
            by_collection.setdefault(collection_of(uri), []).append(uri)
        revs = fetch_revs(tx, did)
        rejected = {(uri, cid) for uri, cid in tx.query(_REJECTED, (did,))}
    for nsid in sorted(by_collection):
        if nsid not in collections:
            continue
        collection, uris = collections[nsid], sorted(by_collection[nsid])
        keys: dict[Key, str] = {}  # natural key -> the record that stands
        for start in range(0, len(uris), PAGE_RECORDS):
            some = uris[start : start + PAGE_RECORDS]
            with snapshot() as tx:
                page = _Page(tx, collection, revs, keys, rejected)
                found = list(page.compare(some))
            yield len(some), found
    with snapshot() as tx:
        unrecorded = list(_unrecorded(tx, did, collections))
    yield 0, unrecorded


@contextmanager
def snapshot(database: Database) -> Iterator[Transaction]:
    """Yield a transaction whose statements all see the same state, and that cannot write."""
    with database.transaction() as tx:
        tx.execute(_SNAPSHOT)
        yield tx


def fetch_revs(tx: Transaction, did: str) -> Revs:
    """Return the revs of a repo."""
    ((complete, queued, newest),) = tx.query(_REVS, (did, did, did))
    return Revs(max(complete or "", queued or ""), newest or "")


def fetch_puts(
    tx: Transaction, uris: Sequence[str], collections: Mapping[str, Collection]
) -> tuple[list[Put], dict[str, tuple[str, str]]]:
    """Return records as if they came again, and of damaged ones, by uri, CID and what is wrong."""
    puts: list[Put] = []
    damaged: dict[str, tuple[str, str]] = {}
    for uri, did, cid, rev, indexed_at, json in tx.query(_RECORDS, (list(uris),)):
        rkey = uri.rpartition("/")[2]
        put = Put(uri, did, rkey, cid, rev or "", indexed_at, historical=True, json=json)
        try:
            record = orjson.loads(json)
            if str(Cid.of(cbor.encode(from_json(record)))) != cid:
                raise InvalidDataError("wrong_cid", "the content has another CID")
            put.rows = collections[collection_of(uri)].read(put, record)
        except (InvalidRecordError, InvalidDataError, ValueError, AttributeError) as error:
            damaged[uri] = cid, str(error)
        else:
            puts.append(put)
    return puts, damaged


class _Page:
    """Some records of one collection, in the order of their uris."""

    def __init__(
        self, tx: Transaction, collection: Collection, revs: Revs, keys: dict[Key, str],
        rejected: Set[tuple[str, str]],
    ) -> None:  # fmt: skip
        """`keys` is filled with the record that stands for each natural key."""
        self._tx = tx
        self._collection = collection
        self._revs = revs
        self._keys = keys
        self._rejected = rejected

    def compare(self, uris: Sequence[str]) -> Iterator[RowDifference]:
        """Return the differences of the rows that these records make."""
        tx, collection = self._tx, self._collection
        puts, damaged = fetch_puts(tx, uris, {collection.nsid: collection})
        for uri, (cid, reason) in damaged.items():
            if (uri, cid) not in self._rejected:  # another indexer let it in
                yield RowDifference(RECORD, "damaged", uri, reason)
        table = collection.table
        if table is None or not puts:
            return
        puts.sort(key=lambda put: put.uri)
        wanted = [put for put in puts if put.rows.main is not None]
        standing = list(self._standing(table, wanted)) if table.unique else wanted
        finished = {} if collection.finished is None else collection.finished(tx, standing)
        known = [put.uri for put in puts]
        yield from self._main_rows(table, known, standing, finished)
        for side in collection.side:
            rows = [(put.uri, *row) for put in standing for row in put.rows.side.get(side.name, ())]
            expected = tx.query(side_rows_sql(side), transpose(rows)) if rows else []
            yield from _side_rows(tx, side, known, expected)
        for side in collection.traces:
            rows = [(uri, *row) for uri, of in finished.items() for row in of.rows[side.name]]
            yield from _side_rows(tx, side, known, rows)
        if table.unique:
            yield from self._duplicates(table, wanted, known)
        errors = check_notifications(tx, collection, known, standing, finished, self._revs)
        for _, uri, reason in errors.wrong:
            yield RowDifference(NOTIFICATIONS, "extra", uri, reason)
        for put, one in errors.missing:
            yield RowDifference(NOTIFICATIONS, "missing", put.uri, f"{one.reason} to {one.did}")

    def _standing(self, table: CollectionTable, puts: Sequence[Put]) -> Iterator[Put]:
        key = NaturalKey(self._tx, self._collection, table)
        for put in puts:
            if self._keys.setdefault(key.of(put), put.uri) == put.uri:
                yield put

    def _main_rows(
        self, table: CollectionTable, uris: Sequence[str], standing: Sequence[Put],
        finished: Mapping[str, Finished],
    ) -> Iterator[RowDifference]:  # fmt: skip
        names = [*GENERIC, *table.columns]
        kinds = {**GENERIC, **table.columns}
        added = next(iter(finished.values())).columns if finished else {}
        chosen = [f'"{name}"' for name in names] + [f'"{name}" IS TRUE' for name in added]
        sql = f'SELECT {", ".join(chosen)} FROM "{table.name}" WHERE uri = ANY(%b::text[])'
        stored = {row[0]: row for row in self._tx.query(sql, (list(uris),))}
        for put in standing:
            row = stored.pop(put.uri, None)
            if row is None:
                yield RowDifference(table.name, "missing", put.uri)
                continue
            main = (put.uri, put.cid, put.did, put.indexed_at, *(put.rows.main or ()))
            expected = [
                orjson.loads(value) if kind == "jsonb" and value is not None else value
                for value, kind in zip(main, kinds.values(), strict=True)
            ]
            if finished:
                expected += finished[put.uri].columns.values()
            if list(row) != expected:
                detail = _difference((*names, *added), row, expected)
                yield RowDifference(table.name, "different", put.uri, detail)
        for uri in stored:
            yield RowDifference(table.name, "extra", uri)

    def _duplicates(
        self, table: CollectionTable, wanted: Sequence[Put], uris: Sequence[str]
    ) -> Iterator[RowDifference]:
        key = NaturalKey(self._tx, self._collection, table)
        rows = [
            (put.uri, put.cid, self._keys[key.of(put)], put.indexed_at)
            for put in wanted
            if self._keys[key.of(put)] != put.uri
        ]
        stored = self._tx.query(_WAITING, (list(uris),))
        columns = ("uri", "cid", "duplicateOf", "indexedAt")
        yield from _compare_rows(DUPLICATES, columns, stored, rows)


def check_notifications(
    tx: Transaction, collection: Collection, uris: Sequence[str], standing: Sequence[Put],
    finished: Mapping[str, Finished], revs: Revs,
) -> NotificationErrors:  # fmt: skip
    """Compare the notifications of some records; `uris` are all of them, `standing` have rows.

    Those of records that only notify when they are created are not known once they were updated.
    """
    errors = NotificationErrors()
    if not collection.renotify or (collection.notify is None and collection.finished is None):
        return errors
    stored: dict[str, list[tuple[Any, ...]]] = {}
    for row in tx.query(_NOTIFICATIONS, (list(uris),)):
        stored.setdefault(row[1], []).append(row)
    expected = {put.uri: _expected(collection, put, finished.get(put.uri)) for put in standing}
    about = {row[4] for row in chain.from_iterable(stored.values()) if row[4] is not None}
    posts = {row[0] for row in tx.query(_POSTS, (sorted(about),))} if finished else about
    by_uri = {put.uri: put for put in standing}
    kept: dict[str, set[tuple[str, str, str | None]]] = {}
    for uri, rows in stored.items():
        right = kept.setdefault(uri, set())
        for number, _, did, reason, subject, cid, author, sort_at in rows:
            put, of = by_uri.get(uri), expected.get(uri, Finished({}))
            one = (did, reason, subject)
            is_unclear = reason in of.unclear or (
                reason in of.unclear_without_subject and subject not in posts
            )
            fits = one not in right and (one in of.possible or is_unclear)
            if (
                put is not None
                and fits
                and (cid, author, sort_at) == (put.cid, put.did, of.sort_at)
            ):
                right.add(one)
            else:
                errors.wrong.append((number, uri, reason))
    missing = [
        (put, one)
        for put in standing
        if kept.get(put.uri) or _is_news(put, revs)
        for one in expected[put.uri].certain
        if (one.did, one.reason, one.reason_subject) not in kept.get(put.uri, ())
    ]
    if missing and collection.table is not None and collection.table.unique:
        alone = [put for put, _ in missing if not kept.get(put.uri)]
        columns = ([put.uri for put in alone], [put.rev for put in alone])
        did = missing[0][0].did
        waited = {row[0] for row in tx.query(_WAITED, (*columns, did, did))}
        missing = [(put, one) for put, one in missing if put.uri not in waited]
    recipients = sorted({one.did for _, one in missing})
    purged = {row[0] for row in tx.query(_PURGED, (recipients,))} if recipients else set()
    missing = [(put, one) for put, one in missing if one.did not in purged]
    errors.missing = without_muted(tx, missing)
    return errors


def _expected(collection: Collection, put: Put, finished: Finished | None) -> Finished:
    """Return the notifications of a record, those of `certain` among the `possible` ones."""
    if finished is None:
        certain = () if collection.notify is None else collection.notify(put)
        finished = Finished({}, certain=certain, sort_at=certain[0].sort_at if certain else "")
    known = {(one.did, one.reason, one.reason_subject) for one in finished.certain}
    return replace(finished, possible=known | finished.possible)


def _is_news(put: Put, revs: Revs) -> bool:
    """Return whether a record certainly came live, so that it has notified.

    The states of a repo that is brought in as a whole have the rev of that repo. While it is being
    brought in, that rev may be above `revs.whole`, but then it is that of an older commit.
    """
    if not revs.whole < put.rev <= revs.newest or not is_rev(put.rev):
        return False
    made = rev_time(put.rev)
    return _minutes(made) - 1 <= _minutes(put.indexed_at) <= _minutes(made) + LIVE_WITHIN_MINUTES


def _minutes(time: str) -> float:
    try:
        return datetime.fromisoformat(time).timestamp() / 60
    except ValueError:
        return 0.0


def _side_rows(
    tx: Transaction, side: SideTable, uris: Sequence[str], expected: Sequence[tuple[Any, ...]]
) -> Iterator[RowDifference]:
    """Compare rows of a side table that belong to these records."""
    columns = (side.owner, *side.columns)
    sql = f'SELECT {quoted(columns)} FROM "{side.name}" WHERE "{side.owner}" = ANY(%b::text[])'
    yield from _compare_rows(side.name, columns, tx.query(sql, (list(uris),)), expected)


def _compare_rows(
    table: str, columns: Sequence[str], stored: Iterable[tuple[Any, ...]],
    expected: Iterable[tuple[Any, ...]],
) -> Iterator[RowDifference]:  # fmt: skip
    """Compare rows whose first column is the uri of their record."""
    ours, theirs = set(expected), set(stored)
    missing, extra = sorted(ours - theirs, key=repr), sorted(theirs - ours, key=repr)
    left: dict[str, list[tuple[Any, ...]]] = {}
    for row in extra:
        left.setdefault(row[0], []).append(row)
    for row in missing:
        if found := left.get(row[0]):
            detail = _difference(columns, found.pop(), row)
            yield RowDifference(table, "different", row[0], detail)
        else:
            yield RowDifference(table, "missing", row[0])
    for uri, rows in left.items():
        for _ in rows:
            yield RowDifference(table, "extra", uri)


def _difference(names: Sequence[str], stored: Sequence[Any], expected: Sequence[Any]) -> str:
    return ", ".join(
        f"{name} is {_shown(was)}, not {_shown(wanted)}"
        for name, was, wanted in zip(names, stored, expected, strict=True)
        if was != wanted
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _unrecorded(
    tx: Transaction, did: str, collections: Mapping[str, Collection]
) -> Iterator[RowDifference]:
    """Find rows of an account whose record is not there.

    Each is looked for where an index leads to it: by account, or among the deleted records.
    """
    seen: set[tuple[str, str]] = set()
    for table, sql, parameters in _searches(collections, did):
        for (uri,) in tx.query(f"SELECT DISTINCT x.uri {sql} AND {_UNRECORDED}", parameters):
            if (table, uri) not in seen and _nsid(uri) in collections:
                seen.add((table, uri))
                yield RowDifference(table, "extra", uri)


def _searches(
    collections: Mapping[str, Collection], did: str
) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Yield table, FROM and WHERE for relation `x` with a column uri, and parameters."""
    for collection in collections.values():
        table = collection.table
        if table is None:
            continue
        if table.unique == ("postUri",):  # these have no index on the account
            yield (
                table.name,
                f'FROM "{table.name}" x JOIN post p ON p.uri = x."postUri" WHERE p.creator = %s',
                (did,),
            )
            yield table.name, _DELETED.format(f'"{table.name}" x', "x.uri"), (did,)
        else:
            yield table.name, f'FROM "{table.name}" x WHERE x.creator = %s', (did,)
        for side in (*collection.side, *collection.traces):
            marks = ' AND "deletedAt" IS NULL' if "deletedAt" in side.columns else ""
            owned = f'(SELECT "{side.owner}" AS uri FROM "{side.name}" s WHERE true{marks}) x'
            yield side.name, _DELETED.format(owned, "x.uri"), (did,)
            if "originatorDid" in side.columns:
                yield side.name, f'FROM "{side.name}" x WHERE x."originatorDid" = %s', (did,)
        if table.unique:
            yield DUPLICATES, _DELETED.format("duplicate_record x", "x.uri"), (did,)
            if "creator" in table.unique:
                joined = f'duplicate_record x JOIN "{table.name}" s ON s.uri = x."duplicateOf"'
                yield DUPLICATES, f"FROM {joined} WHERE s.creator = %s", (did,)
    lasting = [nsid for nsid, one in collections.items() if one.withdraw is not None]
    yield (
        NOTIFICATIONS,
        _NOTIFIED,
        (did, lasting),
    )


def _nsid(uri: str) -> str:
    parts = uri.split("/", 4)
    return parts[3] if len(parts) == 5 else ""
