"""Taking over a database that another indexer has filled: what it is, and what there is to do.

It is recognised by what it holds and judged by its catalogue. Only what is ours is added (`db
init`); rows that are known to be wrong are counted (`wrong_rows`) and repaired later by the
commands that repair ours. Changes that would rewrite or scan a large table for long are given as
SQL with an estimate, for the operator.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rsky_pipeline.configuration.endpoints import HostKey, parse_endpoint
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.forms import ACCOUNT_TIME, LISTS
from rsky_pipeline.database.schema import Difference, appview_release, check, pending
from rsky_pipeline.database.schema.catalogue import Catalogue, Table, read_catalogue
from rsky_pipeline.database.schema.official import (
    OLDEST_RELEASE,
    names_of_others,
    official_names,
    oldest_migrations,
    read_migrations,
)
from rsky_pipeline.operations.cursors import (
    CursorRefusedError,
    CursorStream,
    list_cursors,
    set_cursor,
)
from rsky_pipeline.operations.wrong_rows import (
    KINDS,
    SAMPLE_ROWS,
    TableSize,
    WrongRows,
    clean_up_sql,
    count_wrong_rows,
    table_sizes,
)
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.names import FIREHOSE_LIVE, LABEL_LIVE

Origin = Literal["empty", "unknown", "official", "fork", "rust services", "wintermute", "pipeline"]
Progress = Callable[[str], object]

# Two hours of the whole network: the cursor of another indexer is what it received, and some of
# that may not be in the tables.
MARGIN_EVENTS = 5_000_000
MAX_SEQ = 2**53
REBUILD_RATE = 2_000.0  # records a second, as of `index-repo --rebuild`
_MEASURED_BYTES = 64 << 20
_BUILDS = 4  # an index is built in about the time that its table is read so many times
LARGE_ROWS = 10_000_000
LARGE_SECONDS = 60.0  # of a change that the operator makes
_OUR_INDEX = "op_thread_reply_uri_idx"  # as of the step 0002_pipeline

_CURSORS = "SELECT service, cursor FROM sub_state ORDER BY service"
_READ_SOME = "SELECT count(*) FROM record WHERE ctid < ('(' || %s::int8 || ',1)')::tid"
# Of accounts with records, those that were brought in as a whole by us.
_COMPLETE = f"""
SELECT count(*), count(*) FILTER (
    WHERE EXISTS (SELECT FROM rsky_pipeline.repo_floor f WHERE f.did = x.did))
FROM (SELECT a.did FROM actor a WHERE EXISTS (SELECT FROM record r WHERE r.did = a.did)
    LIMIT {SAMPLE_ROWS}) x
"""
COMPLETE_SHARE = 0.99  # some hosts are gone for good
_PUSHES = ("trigger ", "notification")
_NONE = Table()
INDEX_FIRST = "index_first"


@dataclass(frozen=True, slots=True)
class CursorTakeover:
    """A cursor of another indexer, and the one that would be ours, or why none is."""

    stream: str
    host: str
    theirs: int
    ours: int | None = None
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """Something to do: by `db adopt --apply`, by a command, or by the operator with SQL."""

    name: str
    text: str
    by: Literal["apply", "repair", "operator"]
    seconds: float | None = None  # an estimate; None where it takes no time to speak of
    command: str = ""
    sql: str = ""


@dataclass(frozen=True, slots=True)
class Adoption:
    """The report on a database."""

    origin: Origin
    release: str | None  # the oldest official AppView that takes it
    signs: list[str]  # by which it was recognised
    rows: int
    bytes: int
    differences: list[Difference]
    blocking: list[Difference]  # errors that `db init` does not remove
    wrong: list[WrongRows] = field(default_factory=list)
    cursors: list[CursorTakeover] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether the pipeline can use it after the steps of `--apply`."""
        return self.origin not in ("empty", "unknown") and not self.blocking

    @property
    def pushing(self) -> list[Difference]:
        """Triggers that fire for each notification that is inserted."""
        return [each for each in self.differences if _pushes(each)]


def examine(
    database: Database, store: Store, settings: Settings, *, margin: int, progress: Progress,
    announce: Progress,
) -> Adoption:  # fmt: skip
    """Return the report; reads only. Raises DatabaseError, StoreError.

    `announce` is called in place of `progress` where each step may take long.
    """
    url, schema = settings.database_url or "", settings.database_schema
    progress("comparing the schema")
    with database.transaction() as tx:
        found = read_catalogue(tx, schema)
        known = "kysely_migration" in found
        names = [name for name, _ in read_migrations(tx, schema)] if known else []
        ours = bool(read_catalogue(tx, "rsky_pipeline"))
    origin, signs = recognise(found, names, ours)
    bsync = settings.bsync_url is not None
    differences = [each for each in check(url, schema, bsync=bsync) if not _made(each)]
    blocking = [each for each in differences if each.severity == "error"]
    release = appview_release(url, schema)
    if origin in ("empty", "unknown"):
        return Adoption(origin, release, signs, 0, 0, differences, blocking)
    sizes = table_sizes(database, schema)
    rows, size = sum(t.rows for t in sizes.values()), sum(t.bytes for t in sizes.values())
    report = Adoption(origin, release, signs, rows, size, differences, blocking)
    if blocking:
        return report
    progress = announce if rows > LARGE_ROWS else progress
    report.wrong.extend(count_wrong_rows(database, sizes, progress))
    if "sub_state" in found:
        report.cursors.extend(_cursors(database, store, settings, margin))
    progress("measuring how fast a table is read")
    rate = _bytes_a_second(database, sizes)
    accounts, complete = database.query(_COMPLETE)[0] if ours else (1, 0)
    suspect = origin not in ("official", "pipeline") and complete < COMPLETE_SHARE * accounts
    report.steps.extend(_steps(report, url, schema, sizes, rate, suspect=suspect))
    return report


def recognise(found: Catalogue, names: Sequence[str], ours: bool) -> tuple[Origin, list[str]]:
    """Return who made a database, and the signs of it. Pure."""
    if "kysely_migration" not in found:
        if any(table in found for table in ("record", "actor", "post")):
            return "unknown", ["AppView tables without the bookkeeping of a migrator"]
        return "empty", []
    oldest = oldest_migrations()
    made = len(official_names(names).intersection(oldest))
    signs = [f"{made} of the {len(oldest)} official migrations up to {OLDEST_RELEASE}"]
    fork = names_of_others(names)
    if fork:
        signs.append(f"{len(fork)} migrations of a fork")
    theirs = []
    if "sub_state" in found:
        theirs.append("the table sub_state")
    if ACCOUNT_TIME in found.get("actor", _NONE).columns:
        theirs.append(f"the column actor.{ACCOUNT_TIME}")
    post, record = found.get("post", _NONE).columns, found.get("record", _NONE).columns
    arrays = [name for name in sorted(LISTS["post"]) if post.get(name, "").endswith("[]")]
    if arrays:
        signs.append(f"arrays in {', '.join(f'post.{name}' for name in arrays)}")
    if ours:
        signs.append("the schema rsky_pipeline")
    if theirs:
        return "wintermute", signs + theirs
    if ours:
        return "pipeline", signs
    if fork and "rev" in record and not arrays:
        return "fork", signs
    if "rev" in record or arrays:
        return "rust services", [*signs, *(["the column record.rev"] if "rev" in record else [])]
    return ("fork" if fork else "official"), signs


def take_over(store: Store, cursors: Sequence[CursorTakeover]) -> Iterator[CursorTakeover]:
    """Set our cursors, where there still are none; yield those that were set."""
    for each in cursors:
        if each.ours is not None:
            stream: CursorStream = "label_live" if each.stream == LABEL_LIVE else "firehose_live"
            try:
                set_cursor(store, stream, HostKey(each.host), each.ours, force=False)
            except CursorRefusedError:
                continue  # an ingester has begun meanwhile
            yield each


def queue_checks(database: Database, kinds: Sequence[str], progress: Progress) -> dict[str, int]:
    """Queue accounts of kinds for the checks that indexers make; return how many of each."""
    found = {}
    for kind in KINDS:
        if kind.name in kinds and kind.repair in _QUEUES:
            found[kind.name] = _queue(database, kind.condition, kind.repair, progress)
    return found


_QUEUES = {"handles": "handle_check", "deletions": "deletion_check"}
_PAGE_ACCOUNTS = 10_000


def _queue(database: Database, condition: str, repair: str, progress: Progress) -> int:
    """Queue a page of accounts a transaction, in their order."""
    after, queued = "", 0
    while True:
        page = database.query(
            f"SELECT did FROM actor WHERE did > %s ORDER BY did LIMIT {_PAGE_ACCOUNTS}", [after]
        )
        if not page:
            return queued
        dids, after = [row[0] for row in page], page[-1][0]
        queued += database.execute(
            f"INSERT INTO rsky_pipeline.{_QUEUES[repair]} (did) SELECT x.did FROM actor x "
            f"WHERE x.did = ANY(%b::text[]) AND {condition} ON CONFLICT DO NOTHING",
            [dids],
        )
        progress(f"{repair}: {queued:,} accounts queued")


def _cursors(
    database: Database, store: Store, settings: Settings, margin: int
) -> Iterator[CursorTakeover]:
    stored = {(each.stream, each.host): each for each in list_cursors(store, settings)}
    for service, theirs in database.query(_CURSORS):
        kind, _, name = service.partition(":")
        stream = {"firehose": FIREHOSE_LIVE, "labels": LABEL_LIVE}.get(kind)
        if stream is None:
            continue  # of a listing, which begins anew
        try:
            host = parse_endpoint(name).key
        except ValueError as error:
            yield CursorTakeover(stream, name, theirs, remark=str(error))
            continue
        if not 0 <= theirs < MAX_SEQ:
            yield CursorTakeover(stream, host, theirs, remark="it is no sequence number")
            continue
        ours = stored.get((stream, host))
        if ours is None or not ours.configured:
            setting = "relay_hosts" if stream == FIREHOSE_LIVE else "labeler_hosts"
            remark = f"not taken over: {setting} does not name it"
            yield CursorTakeover(stream, host, theirs, remark=remark)
        elif ours.seq is not None or ours.invalid is not None:
            at = ours.seq if ours.seq is not None else ours.invalid
            yield CursorTakeover(stream, host, theirs, remark=f"ours is at {at} already")
        else:
            yield CursorTakeover(stream, host, theirs, max(0, theirs - margin))


def _steps(
    report: Adoption, url: str, schema: str, sizes: Mapping[str, TableSize], rate: float, *,
    suspect: bool,
) -> Iterator[Step]:  # fmt: skip
    """`suspect` is whether records may be missing, which no count shows."""
    changes = [text for text in pending(url, schema) if not text.startswith("keep ")]
    if changes:
        replies = sizes["op_thread_reply"]
        seconds = 0.0 if "uri" in replies.indexed else _build_seconds(sizes, replies.name, rate)
        if seconds > LARGE_SECONDS:
            sql = f"CREATE INDEX CONCURRENTLY {_OUR_INDEX} ON {replies.name} (uri)"
            text = "make our index before --apply, which would lock the table as long"
            yield Step(INDEX_FIRST, text, "operator", seconds, sql=sql)
        text = f"make what is ours: {len(changes)} changes, which `rsky-pipeline db init` lists"
        yield Step("schema", text, "apply", seconds, "rsky-pipeline db init --dry-run")
    for cursor in report.cursors:
        if cursor.ours is not None:
            text = f"start {cursor.stream} of {cursor.host} at {cursor.ours} (its: {cursor.theirs})"
            yield Step("cursor", text, "apply")
    yield from _repairs(report, sizes, suspect)
    for each in report.differences:
        table = each.subject.partition(" ")[2].removeprefix(f"{schema}.").partition(".")[0]
        if each.subject.startswith("index ") and each.severity == "warning" and each.expected:
            sql = each.expected.replace("INDEX", "INDEX CONCURRENTLY", 1)
            text = f"make the index that {table} lacks; beside running workers"
            seconds = _build_seconds(sizes, table, rate)
            yield Step("index", text, "operator", seconds, sql=sql)
        elif _pushes(each):
            name = each.subject.rpartition(".")[2]
            text = "keep notifications from being pushed while history is repaired (ENABLE again)"
            sql = f'ALTER TABLE notification DISABLE TRIGGER "{name}"'
            yield Step("trigger", text, "operator", sql=sql)


def _repairs(report: Adoption, sizes: Mapping[str, TableSize], suspect: bool) -> Iterator[Step]:
    kinds = {wrong.repair for wrong in report.wrong}
    if suspect or "rebuild" in kinds:
        accounts, records = sizes["actor"].rows, sizes["record"].rows
        text = (
            f"fetch {accounts:,} repos, and write rows again that are not what they say, at "
            f"{REBUILD_RATE:,.0f} records a second (--rate)"
        )
        command = "rsky-pipeline index-repo --rebuild --source pds --all"
        yield Step("rebuild", text, "repair", records / REBUILD_RATE, command)
    if "recount" in kinds:
        text, command = "recount everything", "rsky-pipeline db recount --all"
        seconds = (sizes["post"].rows + sizes["actor"].rows) / 5_000
        yield Step("recount", text, "repair", seconds, command)
    for wrong in report.wrong:
        if wrong.repair in _QUEUES:
            which = "look up the handles" if wrong.repair == "handles" else "ask the hosts"
            text = f"have the indexer {which} of {wrong.estimate:,} accounts"
            yield Step(wrong.name, text, "repair", wrong.estimate / 10)
        elif wrong.repair == "labels":
            text = "read the labels again from the beginning"
            command = "rsky-pipeline cursor set HOST 0 --stream label_live"
            yield Step(wrong.name, text, "operator", command=command)
        elif wrong.repair == "sql":
            kind = next(each for each in KINDS if each.name == wrong.name)
            text = f"after the repair, until nothing is removed: {wrong.text}, {wrong.estimate:,}"
            yield Step(wrong.name, text, "operator", wrong.estimate / 5_000, sql=clean_up_sql(kind))


def _build_seconds(sizes: Mapping[str, TableSize], table: str, rate: float) -> float:
    return _BUILDS * sizes[table].bytes / rate if table in sizes else 0.0


def _bytes_a_second(database: Database, sizes: Mapping[str, TableSize]) -> float:
    """Return how fast the first pages of the largest table are read, as this server is now."""
    pages = _MEASURED_BYTES // 8192
    began = time.monotonic()
    database.query(_READ_SOME, [pages])
    read = min(_MEASURED_BYTES, sizes["record"].bytes)
    return max(1 << 20, read / max(0.001, time.monotonic() - began))


def _made(each: Difference) -> bool:
    """Return whether `db init` removes a difference: a part of ours, that is not there yet."""
    if each.subject == "schema version":
        return each.severity == "error"
    ours = ("table rsky_pipeline.", ".record.rev", ".op_thread_reply_uri_idx")
    return each.found is None and any(name in each.subject for name in ours)


def _pushes(each: Difference) -> bool:
    kind, table = _PUSHES
    return each.subject.startswith(kind) and f".{table}." in each.subject
