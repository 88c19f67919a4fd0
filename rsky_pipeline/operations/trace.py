"""Where is this record, or this account? Asked at every place on the way from PDS to AppView.

`trace` asks the PDS, the ingester's metrics, Redis and PostgreSQL, and returns values: None stands
for "could not be asked". `operations/diagnosis.py`, which is pure, concludes from them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import quote

import orjson
import trio

from rsky_pipeline.atproto.syntax import (
    is_tid,
    tid_microseconds,
)
from rsky_pipeline.configuration.selection import is_selected
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.database.selection import blocks_of
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.network.directory import (
    Directory,
    IdentityNotFoundError,
    IdentityUnavailableError,
)
from rsky_pipeline.network.http import HttpClient, HttpError
from rsky_pipeline.operations.erasure import erased_revs
from rsky_pipeline.operations.scrape import scrape, targets
from rsky_pipeline.operations.subjects import NamedSubject
from rsky_pipeline.streams.bsync import reading_of
from rsky_pipeline.streams.connection import Store, connect, text_of
from rsky_pipeline.streams.dead_letters import find_dead_letter
from rsky_pipeline.streams.errors import StoreRejectedError, StoreUnavailableError
from rsky_pipeline.streams.limits import PAGE_ENTRIES
from rsky_pipeline.streams.names import REPO_STREAMS, STREAMS, dead_letters
from rsky_pipeline.streams.scan import StoredEntry, discard, moment, nature, newest

LIMIT = 200_000  # entries of one stream
MAX_FOUND = 50  # entries of one stream that are reported
_PDS_SECONDS = 15.0
_NO_RECORD = {"RecordNotFound", "InvalidRequest", "NotFound"}  # older hosts have no own name
_FLAGS = ("invalidReplyRoot", "violatesThreadGate", "violatesEmbeddingRules")

# Whether the AppView has a row of an operation's item, and whether it shows it: private data alone
# is no bookmark.
_ROWS = """
    CASE
        WHEN a.namespace = 'mute' THEN EXISTS (
            SELECT FROM mute m WHERE m."mutedByDid" = a.actor AND m."subjectDid" = a.key)
        WHEN a.namespace = 'list_mute' THEN EXISTS (
            SELECT FROM list_mute m WHERE m."mutedByDid" = a.actor AND m."listUri" = a.key)
        WHEN a.namespace = 'thread_mute' THEN EXISTS (
            SELECT FROM thread_mute m WHERE m."mutedByDid" = a.actor AND m."rootUri" = a.key)
        WHEN a.namespace = 'actor_state' THEN EXISTS (
            SELECT FROM actor_state s WHERE s.did = a.actor)
        WHEN a.log = 'operation' THEN EXISTS (
            SELECT FROM private_data p
            WHERE p."actorDid" = a.actor AND p.namespace = a.namespace AND p.key = a.key)
    END,
    CASE a.namespace
        WHEN 'app.bsky.bookmark.defs#bookmark' THEN EXISTS (
            SELECT FROM bookmark b WHERE b.creator = a.actor AND b.key = a.key)
        WHEN 'app.bsky.draft.defs#draftWithId' THEN EXISTS (
            SELECT FROM draft d WHERE d.creator = a.actor AND d.key = a.key)
        WHEN 'app.bsky.notification.defs#subjectActivitySubscription' THEN EXISTS (
            SELECT FROM activity_subscription s WHERE s.creator = a.actor AND s.key = a.key)
    END
"""
_OF_ACCOUNT = f"""
SELECT a.log, a.actor, a.namespace, a.key, a.place, {_ROWS}
FROM rsky_pipeline.bsync_applied a WHERE a.actor = %s ORDER BY a.place DESC LIMIT {MAX_FOUND}
"""
_ABOUT_RECORD = f"""
WITH wanted AS (
    SELECT "mutedByDid" AS actor, 'mute' AS log, 'thread_mute' AS namespace, "rootUri" AS key
    FROM thread_mute WHERE "rootUri" = %s
    UNION ALL
    SELECT creator, 'operation', 'app.bsky.bookmark.defs#bookmark', key
    FROM bookmark WHERE "subjectUri" = %s LIMIT {MAX_FOUND}
)
SELECT a.log, a.actor, a.namespace, a.key, a.place, {_ROWS}
FROM wanted w JOIN rsky_pipeline.bsync_applied a
    ON a.actor = w.actor AND a.log = w.log AND a.namespace = w.namespace AND a.key = w.key
ORDER BY a.place DESC
"""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AtPds:
    """The answer of the account's host; `problem` where it could not be asked."""

    host: str | None = None
    handle: str | None = None
    rev: str | None = None  # of the newest commit
    state: str | None = None  # why the host does not serve the repo, as RepoDeactivated
    present: bool | None = None  # whether it has the record
    cid: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class InStream:
    """An entry about the record; `groups` maps each group to unread, done or pending with whom."""

    stream: str
    id: str
    time: str | None
    kind: str
    rev: str
    groups: Mapping[str, str]

    @property
    def wanted(self) -> bool:
        """Whether some group has not finished with it."""
        return any(state != "done" for state in self.groups.values()) or not self.groups


@dataclass(frozen=True, slots=True)
class TracedLetter:
    """A dead letter about the record."""

    stream: str
    id: str
    time: str | None
    reason: str
    error: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Searched:
    """How much of a stream was looked at: newest first, up to a limit."""

    stream: str
    entries: int
    of: int


@dataclass(frozen=True, slots=True)
class InRedis:
    """Everything found in streams and dead-letter streams."""

    entries: tuple[InStream, ...] = ()
    letters: tuple[TracedLetter, ...] = ()
    searched: tuple[Searched, ...] = ()
    problem: str | None = None

    @property
    def complete(self) -> bool:
        """Whether everything was looked at."""
        return self.problem is None and all(item.entries >= item.of for item in self.searched)


@dataclass(frozen=True, slots=True)
class InDatabase:
    """The rows of the record and its account in PostgreSQL."""

    record: Mapping[str, Any] | None = None  # cid, rev, indexed_at, taken_down
    tables: Mapping[str, int] = field(default_factory=dict)  # rows by table, `record` left out
    main_table: str | None = None  # where a record of this collection has its row
    duplicate_of: str | None = None
    tombstone: Mapping[str, Any] | None = None  # rev, deleted_at
    complete_rev: str | None = None  # all of the repo up to this rev is stored
    actor: Mapping[str, Any] | None = None  # handle, status, taken_down
    account_event: Mapping[str, Any] | None = None
    synced_rev: str | None = None
    backfill: Mapping[str, Any] | None = None
    labels: tuple[Mapping[str, Any], ...] = ()
    flags: Mapping[str, bool | None] = field(default_factory=dict)  # of a post; None is undecided
    records: Mapping[str, int] = field(default_factory=dict)  # of an account, by collection
    erased: str | None = None  # the account was purged up to this rev, and has not come back
    blocks: tuple[Mapping[str, Any], ...] = ()  # kind, subject, since, reason
    # Operations of bsync: log, id, reading, actor, namespace, key, stored, shown. And up to which
    # id each log is applied, with its time.
    private: tuple[Mapping[str, Any], ...] = ()
    bsync: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Firehose:
    """How far the ingester has read, in seconds since 1970; None if no ingester reported it."""

    read_to: float | None = None
    written_at: float | None = None  # the time in the record's key
    selected: bool = True  # whether settings select the collection

    @property
    def passed(self) -> bool | None:
        """Whether the ingester has read beyond the moment of the record."""
        if self.read_to is None or self.written_at is None:
            return None
        return self.read_to > self.written_at


@dataclass(frozen=True, slots=True)
class Traced:
    """Everything that was found about a subject."""

    subject: NamedSubject
    pds: AtPds
    firehose: Firehose
    redis: InRedis
    database: InDatabase

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        found = asdict(self)
        found["subject"] = self.subject.text
        found["firehose"]["passed"] = self.firehose.passed
        found["redis"]["complete"] = self.redis.complete
        found["database"]["floor"] = found["database"].pop("complete_rev")  # its name of old
        return found


def trace(
    settings: Settings,
    subject: NamedSubject,
    *,
    limit: int = LIMIT,
    on_progress: Callable[[str], None] = lambda step: None,
) -> Traced:
    """Ask PDS, ingester, Redis and PostgreSQL; nothing that does not answer ends it.

    `settings` went through `resolve_directories` and `store_urls`. Blocking, and not for use
    within a trio loop.
    """
    on_progress("asking the PDS")
    pds = _ask_pds(settings, subject)
    on_progress("searching Redis")
    redis = _search(settings, subject, limit, on_progress)
    on_progress("asking the database")
    return Traced(
        subject, pds, _firehose(settings, subject), redis, _ask_database(settings, subject)
    )


def _search(
    settings: Settings, subject: NamedSubject, limit: int, on_progress: Callable[[str], None]
) -> InRedis:
    try:
        with closing(connect(settings.redis_url or "", name="trace")) as store:
            return search(store, subject, limit=limit, on_progress=on_progress)
    except (StoreUnavailableError, StoreRejectedError) as error:
        return InRedis(problem=str(error))


def _firehose(settings: Settings, subject: NamedSubject) -> Firehose:
    times = [
        value
        for target in targets(settings)
        if target.role == "ingester"
        for value in scrape(settings, target)
        .samples.get("ingester_last_event_timestamp_seconds", {})
        .values()
        if value
    ]
    selected = not subject.collection or is_selected(subject.collection, settings.collections)
    written = tid_microseconds(subject.rkey) / 1e6 if is_tid(subject.rkey) else None
    return Firehose(max(times, default=None), written, selected)


def search(
    store: Store,
    subject: NamedSubject,
    *,
    limit: int = LIMIT,
    on_progress: Progress = lambda _: None,
) -> InRedis:
    """Look at the newest `limit` entries of every stream and its dead letters.

    Raises StoreUnavailableError and StoreRejectedError.
    """
    entries: list[InStream] = []
    letters: list[TracedLetter] = []
    searched: list[Searched] = []
    for stream in STREAMS:
        found, looked_at = _search_stream(store, stream, subject, limit, on_progress)
        entries += [_described(store, stream, entry) for entry in found]
        searched.append(looked_at)
        found, looked_at = _search_stream(store, dead_letters(stream), subject, limit, on_progress)
        letters += [_letter(store, stream, entry) for entry in found]
        searched.append(looked_at)
    return InRedis(tuple(entries), tuple(letters), tuple(searched))


def _search_stream(
    store: Store, stream: str, subject: NamedSubject, limit: int, on_progress: Progress
) -> tuple[list[StoredEntry], Searched]:
    total = int(store.call("XLEN", stream))
    found: list[StoredEntry] = []
    looked_at = 0
    for page in _backwards(store, stream, min(limit, total)):
        looked_at += len(page)
        found += [entry for entry in page if _is_about(stream, entry.fields, subject)]
        if looked_at % (100 * PAGE_ENTRIES) == 0:
            on_progress(f"{stream}: {looked_at:,} of {total:,} entries searched")
        if len(found) >= MAX_FOUND:
            break
    return found[:MAX_FOUND], Searched(stream, looked_at, total)


def _backwards(store: Store, stream: str, most: int) -> Iterator[list[StoredEntry]]:
    before = None
    while most > 0 and (page := newest(store, stream, min(PAGE_ENTRIES, most), before=before)):
        yield page
        most -= len(page)
        before = page[-1].id


def _is_about(stream: str, fields: Mapping[bytes, bytes], subject: NamedSubject) -> bool:
    """Return whether an entry is about a record: a quick look at the bytes first."""
    did = subject.account.encode()
    for payload in fields.values():
        if did not in payload:
            continue
        body = _json(payload)
        if "operation" in body:
            return _is_operation_about(body, subject)
        if "labels" in body or "label" in body:
            return _has_label(body, subject)
        if body.get("did") != subject.account:
            continue
        if not subject.collection or stream.removesuffix("_dlq") in REPO_STREAMS:
            return True  # a job is about every record of its repo
        if (body.get("collection"), body.get("rkey")) == (subject.collection, subject.rkey):
            return True
    return False


def _is_operation_about(body: dict[str, Any], subject: NamedSubject) -> bool:
    """Return whether an operation of bsync is of an account, or about it or a record."""
    operation = body["operation"]
    about = operation.get("subject") if isinstance(operation, dict) else None
    return about == subject.text or (not subject.collection and body.get("did") == subject.account)


def _has_label(body: dict[str, Any], subject: NamedSubject) -> bool:
    labels = body.get("labels", [body.get("label")])
    return isinstance(labels, list) and any(
        isinstance(label, dict) and label.get("uri") in (subject.text, subject.account)
        for label in labels
    )


def _described(store: Store, stream: str, entry: StoredEntry) -> InStream:
    body = next((_json(payload) for payload in entry.fields.values()), {})
    unfinished = {
        item.group: item.state for item in discard(store, stream, [entry.id], "look").unfinished
    }
    groups = {}
    for row in store.call("XINFO", "GROUPS", stream):
        name = dict(zip(row[::2], row[1::2], strict=True))[b"name"]
        state = unfinished.get(text_of(name), "done")
        groups[text_of(name)] = _holder(store, stream, name, entry.id, state)
    rev = body.get("rev")
    kind = nature(entry.fields).kind
    return InStream(
        stream, entry.id, moment(entry.id), kind, rev if isinstance(rev, str) else "", groups
    )


def _holder(store: Store, stream: str, group: bytes, entry_id: str, state: str) -> str:
    if state != "pending":
        return state
    rows = store.call("XPENDING", stream, group, entry_id, entry_id, 1)
    if not rows:
        return "done"  # acknowledged since we looked
    _, consumer, idle, deliveries = rows[0]
    return f"pending with {text_of(consumer)} for {idle / 1000:.0f} s, delivered {deliveries} times"


def _letter(store: Store, stream: str, entry: StoredEntry) -> TracedLetter:
    letter = find_dead_letter(store, stream, entry.id)
    if letter is None:  # retried or dropped since we looked
        return TracedLetter(stream, entry.id, moment(entry.id), "gone", "taken away meanwhile", 0)
    return TracedLetter(
        stream, entry.id, moment(entry.id), letter.reason, letter.error, letter.attempts
    )


def _json(payload: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _ask_pds(settings: Settings, subject: NamedSubject) -> AtPds:
    """Ask the PDS that the DID document names. Not for use within a trio loop."""
    return trio.run(_ask_host, settings, subject)


async def _ask_host(settings: Settings, subject: NamedSubject) -> AtPds:
    async with HttpClient(allow_private=settings.allow_private_hosts, proxy=settings.proxy) as http:
        directory = Directory(
            http, settings.plc_url, allow_private=settings.allow_private_hosts, max_cached=10
        )
        try:
            document = await directory.resolve(subject.account)
        except IdentityNotFoundError as error:
            return AtPds(state="IdentityNotFoundError", problem=str(error))
        except IdentityUnavailableError as error:
            return AtPds(problem=str(error))
        if document.pds is None:
            return AtPds(handle=document.handle, state="NoPds", problem="its DID names no PDS")
        try:
            rev, state = await _latest(http, document.pds, subject)
            present, cid = None, None
            if subject.collection and state is None:
                present, cid = await _record(http, document.pds, subject)
        except HttpError as error:
            return AtPds(document.pds, document.handle, problem=str(error))
        return AtPds(document.pds, document.handle, rev, state, present, cid)


async def _latest(
    http: HttpClient, pds: str, subject: NamedSubject
) -> tuple[str | None, str | None]:
    """Return rev, or the reason why there is none. Raises HttpError where neither is known."""
    url = f"{pds}/xrpc/com.atproto.sync.getLatestCommit?did={quote(subject.account, safe=':')}"
    try:
        body = await http.get_json(url, total_seconds=_PDS_SECONDS)
    except HttpError as error:
        if error.kind == "status" and error.code.startswith("Repo"):
            return None, error.code
        raise
    rev = body.get("rev") if isinstance(body, dict) else None
    return (rev if isinstance(rev, str) else None), None


async def _record(http: HttpClient, pds: str, subject: NamedSubject) -> tuple[bool, str | None]:
    query = "&".join(
        f"{name}={quote(value, safe=':')}"
        for name, value in (
            ("repo", subject.account), ("collection", subject.collection), ("rkey", subject.rkey),
        )
    )  # fmt: skip
    try:
        body = await http.get_json(
            f"{pds}/xrpc/com.atproto.repo.getRecord?{query}", total_seconds=_PDS_SECONDS
        )
    except HttpError as error:
        if error.kind == "status" and error.code in _NO_RECORD:
            return False, None
        raise
    cid = body.get("cid") if isinstance(body, dict) else None
    return True, cid if isinstance(cid, str) else None


def _ask_database(settings: Settings, subject: NamedSubject) -> InDatabase:
    """Look everything up; a database that cannot be asked is a `problem`."""
    try:
        with Database.connect(
            settings.database_url or "", schema=settings.database_schema, name="trace",
            statement_timeout_ms=30_000,
        ) as database:  # fmt: skip
            return _rows(database, subject)
    except DatabaseError as error:
        return InDatabase(problem=" ".join(str(error).split()))


def _rows(database: Database, subject: NamedSubject) -> InDatabase:
    collection = registry.load().get(subject.collection)
    table = collection.table.name if collection and collection.table else None
    uri, did = [subject.text], [subject.account]
    duplicate = database.query('SELECT "duplicateOf" FROM duplicate_record WHERE uri = %s', uri)
    return InDatabase(
        record=_row(database, ("cid", "rev", "indexed_at", "taken_down"),
                    'SELECT cid, rev, "indexedAt", "takedownRef" FROM record WHERE uri = %s', uri),
        tables=_tables(database, collection, subject.text),
        main_table=table,
        duplicate_of=duplicate[0][0] if duplicate else None,
        tombstone=_row(database, ("rev", "deleted_at"),
                       "SELECT rev, deleted_at::text FROM rsky_pipeline.tombstone WHERE uri = %s",
                       uri),
        complete_rev=_complete_rev(database, subject.account),
        actor=_row(database, ("handle", "status", "taken_down"),
                   'SELECT handle, "upstreamStatus", "takedownRef" FROM actor WHERE did = %s', did),
        account_event=_row(
            database, ("time", "active", "status"),
            "SELECT event_time, active, status FROM rsky_pipeline.account_event WHERE did = %s",
            did),
        synced_rev=_first(
            database.query('SELECT "repoRev" FROM actor_sync WHERE did = %s', did)),
        backfill=_row(
            database, ("status", "rev", "error", "attempts", "updated_at"),
            "SELECT status, rev, error, attempts, updated_at::text "
            "FROM rsky_pipeline.backfill_repo WHERE did = %s", did),
        labels=_labels(database, subject),
        flags=_flags(database, subject.text) if table == "post" else {},
        records=_records(database, subject.account) if not subject.collection else {},
        erased=erased_revs(database, did).get(subject.account),
        blocks=_blocks(database, subject),
        private=private_operations(database, subject),
        bsync=applied_logs(database),
    )  # fmt: skip


def _tables(database: Database, collection: Collection | None, uri: str) -> dict[str, int]:
    """Count the rows of a record in the tables of its collection, and its notifications."""
    owners = {"notification": "recordUri"}
    if collection is not None and collection.table is not None:
        owners[collection.table.name] = "uri"
        owners |= {side.name: side.owner for side in collection.side}
    counts = {
        name: int(
            database.query(f'SELECT count(*) FROM "{name}" WHERE "{owner}" = %s', [uri])[0][0]
        )
        for name, owner in owners.items()
    }
    return {name: count for name, count in counts.items() if count}


def _complete_rev(database: Database, did: str) -> str | None:
    if database.query("SELECT to_regclass('rsky_pipeline.repo_floor')")[0][0] is None:
        return None  # a database of an earlier version
    return _first(database.query("SELECT rev FROM rsky_pipeline.repo_floor WHERE did = %s", [did]))


def _blocks(database: Database, subject: NamedSubject) -> tuple[Mapping[str, Any], ...]:
    """Return the blocks that an account, its host as far as it is known, or a record is under."""
    if database.query("SELECT to_regclass('rsky_pipeline.block')")[0][0] is None:
        return ()  # a database of an earlier version
    return tuple(
        {"kind": block.kind, "subject": block.subject, "reason": block.reason,
         "since": None if block.since is None else block.since.isoformat()}
        for block in blocks_of(database, subject.account, collection=subject.collection)
    )  # fmt: skip


def private_operations(database: Database, subject: NamedSubject) -> tuple[Mapping[str, Any], ...]:
    """Return the newest operations of bsync of an account, or about a record."""
    if not _has_bsync(database):
        return ()
    named = [subject.text] * 2 if subject.collection else [subject.account]
    rows = database.query(_ABOUT_RECORD if subject.collection else _OF_ACCOUNT, named)
    found = []
    for log, actor, namespace, key, place, stored, shown in rows:
        reading, number = reading_of(place)
        found.append({"log": log, "id": number, "reading": reading, "actor": actor,
                      "namespace": namespace, "key": key, "stored": stored,
                      "shown": shown})  # fmt: skip
    return tuple(found)


def applied_logs(database: Database) -> dict[str, str]:
    """Return up to which operation each log of bsync is applied, and when that was."""
    if not _has_bsync(database):
        return {}
    rows = database.query(
        "SELECT log, place, applied_at::text FROM rsky_pipeline.bsync_log ORDER BY log"
    )
    return {log: f"{reading_of(place)[1]} at {applied}" for log, place, applied in rows}


def _has_bsync(database: Database) -> bool:
    found = database.query("SELECT to_regclass('rsky_pipeline.bsync_applied')")
    return found[0][0] is not None


def _labels(database: Database, subject: NamedSubject) -> tuple[Mapping[str, Any], ...]:
    rows = database.query(
        "SELECT src, uri, val, cts FROM label WHERE uri = ANY(%s) AND NOT neg LIMIT 100",
        [[subject.text, subject.account]],
    )
    return tuple(dict(zip(("src", "uri", "val", "cts"), row, strict=True)) for row in rows)


def _flags(database: Database, uri: str) -> dict[str, bool | None]:
    columns = ", ".join(f'"{name}"' for name in _FLAGS)
    rows = database.query(f"SELECT {columns} FROM post WHERE uri = %s", [uri])
    return dict(zip(_FLAGS, rows[0], strict=True)) if rows else {}


def _records(database: Database, did: str) -> dict[str, int]:
    rows = database.query(
        "SELECT split_part(uri, '/', 4), count(*) FROM record WHERE did = %s GROUP BY 1 ORDER BY 1",
        [did],
    )
    return {str(name): int(count) for name, count in rows}


def _row(
    database: Database, names: Sequence[str], sql: str, parameters: Sequence[Any]
) -> dict[str, Any] | None:
    rows = database.query(sql, parameters)
    return dict(zip(names, rows[0], strict=True)) if rows else None


def _first(rows: Sequence[tuple[Any, ...]]) -> str | None:
    return str(rows[0][0]) if rows else None
