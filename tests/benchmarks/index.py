"""Entries of `firehose_live` to committed rows, on a large database, beside its floor.

The floor is the least that PostgreSQL can do for the same rows: COPY of all of them into the same
tables with all official indexes, and the aggregates in one statement a batch. Its rows belong to
other accounts at other places of each index, as new rows do, and are rolled back.
"""

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import psycopg

from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.event import EVENT_FIELD
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.names import FIREHOSE_LIVE
from tests.benchmarks.filled import Filled, filled
from tests.benchmarks.processes import cpu_seconds, memory_bytes, processor_seconds
from tests.benchmarks.report import Report
from tests.benchmarks.traffic import time_text

Connection = psycopg.Connection[tuple[object, ...]]
Item = TypeVar("Item")
EVENTS = 40_000
BATCH = 500
RATES = (150, 200, 1_000)  # events a second, at which the time to the row is measured
RATE_SECONDS = 20.0
FLOOR_BATCH = 2_000
_PAUSE = 0.05
_LOOK_SECONDS = 0.004
_LATE_SECONDS = 10.0
_SEEN_EVERY = 4  # events, of which one is looked for
_COPIED = (
    "record", "duplicate_record", '"like"', "repost", "follow", "actor_block", "post", "feed_item",
    "notification", "thread_gate",
)  # fmt: skip
_DID = re.compile(rb"did:plc:([a-z2-7])")
_NEXT = bytes.maketrans(b"abcdefghijklmnopqrstuvwxyz234567", b"bcdefghijklmnopqrstuvwxyz234567a")
# Counts that the rows of a batch change: table, its subject, the table and column of the count.
_COUNTED = (
    ('"like"', "subject", "post_agg", "uri", "likeCount"),
    ("repost", "subject", "post_agg", "uri", "repostCount"),
    ("follow", '"subjectDid"', "profile_agg", "did", "followersCount"),
    ("post", "creator", "profile_agg", "did", "postsCount"),
)


def bench_index(report: Report) -> None:
    """Index events as fast as they are taken, and at low rates."""
    with filled() as running, running.connect() as database:
        costs = running.fill_costs
        # Of historical records, which come first: live ones notify, and cost more.
        report.figure("the loader's sixth tenth of the filling, a record", costs[5], "us")
        report.ratio("of its second tenth", costs[5], costs[1])
        store = connect(running.settings.redis_url or "", name="bench")
        full = _at_full_rate(report, running, store, database)
        for rate in RATES:
            cost = _at_rate(report, running, store, database, rate)
            report.ratio("of the same at full rate", cost, full)
        store.close()


def _at_full_rate(report: Report, running: Filled, store: Store, database: Connection) -> float:
    """Return the processor time of all processes an event, in microseconds."""
    first, payloads = running.next, _next_events(running, BATCH + EVENTS)
    _feed(store, payloads[:BATCH])  # prepares statements, and warms little else
    _wait(store)
    database.execute("CHECKPOINT")
    before, counters = _used(running, database), _counters(database)
    began = time.perf_counter()
    _feed(store, payloads[BATCH : BATCH + EVENTS // 2])
    _wait(store)
    database.execute("CHECKPOINT")  # one lies within the run
    _feed(store, payloads[BATCH + EVENTS // 2 :])
    _wait(store)
    seconds = time.perf_counter() - began
    used, after = _used(running, database), _counters(database)
    used.subtract(before)
    report.rate(f"entries to rows, in a database of {first:,} records", EVENTS, seconds)
    for part, value in used.most_common():
        if value:
            report.figure(f"  processor time, {part}", value / EVENTS * 1e6, "us")
    names = ("WAL", "full-page images", "blocks read")
    for name, unit, old, new in zip(names, ("bytes", "", ""), counters, after, strict=True):
        report.figure(f"  {name}, an event", (new - old) / EVENTS, unit)
    for part, value in memory_bytes([running.process.pid]).most_common():
        report.figure(f"  memory (PSS), {part}", value / 1e6, "MB")
    floor = _floor(database, time_text(first + BATCH), EVENTS)
    report.figure("  floor of a backend: COPY of the same rows, and their counts", floor, "us")
    report.ratio("backends, of their floor", used["PostgreSQL: backends"] / EVENTS * 1e6, floor)
    return used.total() / EVENTS * 1e6


def _at_rate(
    report: Report, running: Filled, store: Store, database: Connection, rate: int
) -> float:
    """Append events at a rate, and look for the rows of some until they are visible.

    Returns the processor time of all processes an event, in microseconds.
    """
    payloads = _next_events(running, int(rate * RATE_SECONDS))
    before = _used(running, database)
    waiting: dict[str, float] = {}
    found: list[float] = []
    began, sent = time.perf_counter(), 0
    while sent < len(payloads) or waiting:
        due = min(len(payloads), int((time.perf_counter() - began) * rate) + 1)
        if due > sent:
            _feed(store, payloads[sent:due])
            now = time.perf_counter()
            some = (uri for payload in payloads[sent:due:_SEEN_EVERY] if (uri := _created(payload)))
            waiting |= dict.fromkeys(some, now)
            sent = due
        if waiting:
            sql = "SELECT uri FROM bsky.record WHERE uri = ANY(%s)"
            rows = database.execute(sql, (list(waiting),)).fetchall()
            now = time.perf_counter()
            found += [now - waiting.pop(str(uri)) for (uri,) in rows]
            # One that is deleted or refused at once has no row.
            waiting = {uri: since for uri, since in waiting.items() if now - since < _LATE_SECONDS}
        time.sleep(_LOOK_SECONDS)
    _wait(store)
    used = _used(running, database)
    found.sort()
    assert len(found) > len(payloads) / _SEEN_EVERY / 2, "most events have no rows"
    for share in (0.5, 0.99):
        name = f"  entry to visible row at {rate:,} events/s, p{share * 100:.0f}"
        report.figure(name, found[int(len(found) * share)] * 1_000, "ms")
    cost = (used.total() - before.total()) / len(payloads) * 1e6
    report.figure(f"  processor time of all processes at {rate:,} events/s", cost, "us")
    return cost


def _next_events(running: Filled, count: int) -> list[bytes]:
    found = list(running.traffic.events(running.next, count, historical=False))
    running.advance(count)
    return found


def _used(running: Filled, database: Connection) -> Counter[str]:
    return cpu_seconds([running.process.pid], {database.info.backend_pid})


def _created(payload: bytes) -> str | None:
    """Return the uri of an event that creates a record of its own."""
    found = re.match(
        rb'\{"type":"create".*?"did":"([^"]+)".*?"collection":"([^"]+)","rkey":"([^"]+)"', payload
    )
    return "at://" + b"/".join(found.groups()).decode() if found and found[3] != b"self" else None


def _feed(store: Store, payloads: Sequence[bytes]) -> None:
    for start in range(0, len(payloads), BATCH):
        part = payloads[start : start + BATCH]
        append(store, [Entry(FIREHOSE_LIVE, EVENT_FIELD, payload) for payload in part])


def _wait(store: Store) -> None:
    """Return when the indexer has acknowledged everything."""
    while True:
        groups = inspect(store, FIREHOSE_LIVE).groups
        if groups and not sum(group.lag + group.pending for group in groups):
            return
        time.sleep(_PAUSE)


def _counters(database: Connection) -> tuple[int, int, int]:
    """Return bytes and full-page images of the WAL so far, and blocks that were not in memory."""
    row = database.execute(
        "SELECT wal_bytes::bigint, wal_fpi, (SELECT sum(blks_read)::bigint FROM pg_stat_database) "
        "FROM pg_stat_wal"
    ).fetchone()
    assert row is not None
    return int(str(row[0])), int(str(row[1])), int(str(row[2]))


def _floor(database: Connection, since: str, events: int) -> float:
    """Return the microseconds of a backend for the rows of the events since a time, an event."""
    database.execute("SET search_path TO bsky")
    rows = {table: _lines(database, table, since) for table in _COPIED}
    subjects = {counted: _subjects(database, *counted[:2], since) for counted in _COUNTED}
    database.execute("CHECKPOINT")
    pid, parts = database.info.backend_pid, max(1, round(events / FLOOR_BATCH))
    began = processor_seconds(pid)
    with database.transaction(force_rollback=True):
        for part in range(parts):
            for table, (columns, lines) in rows.items():
                with database.cursor().copy(
                    f"COPY {table} ({columns}) FROM STDIN".encode()
                ) as copy:
                    copy.write(b"".join(_share(lines, part, parts)))
            for (_, _, table, key, column), found in subjects.items():
                counts = sorted(Counter(_share(found, part, parts)).items())
                database.execute(
                    f'INSERT INTO {table} ({key}, "{column}") SELECT * FROM unnest(%b::text[], '
                    f'%b::bigint[]) ON CONFLICT ({key}) DO UPDATE '
                    f'SET "{column}" = {table}."{column}" + excluded."{column}"'.encode(),
                    ([key for key, _ in counts], [count for _, count in counts]),
                )  # fmt: skip
        used = processor_seconds(pid) - began
    return used / events * 1e6


def _share(items: Sequence[Item], part: int, parts: int) -> Sequence[Item]:
    size = -(-len(items) // parts)
    return items[part * size : (part + 1) * size]


def _lines(database: Connection, table: str, since: str) -> tuple[str, list[bytes]]:
    """Return the columns and the COPY lines of new rows, as if of other accounts."""
    found = database.execute(
        "SELECT quote_ident(column_name), column_name FROM information_schema.columns "
        "WHERE table_schema = 'bsky' AND table_name = %s AND is_generated = 'NEVER' "
        "AND coalesce(column_default, '') NOT LIKE 'nextval%%' ORDER BY ordinal_position",
        (table.strip('"'),),
    ).fetchall()
    columns = ", ".join(str(quoted) for quoted, _ in found)
    when = '"indexedAt"' if "indexedAt" in {name for _, name in found} else '"sortAt"'
    sql = f"COPY (SELECT {columns} FROM {table} WHERE {when} >= '{since}') TO STDOUT"
    with database.cursor().copy(sql.encode()) as copy:
        data = b"".join(bytes(part) for part in copy)
    moved = _DID.sub(lambda match: b"did:plc:" + match[1].translate(_NEXT), data)
    return columns, moved.splitlines(keepends=True)


def _subjects(database: Connection, table: str, subject: str, since: str) -> list[str]:
    sql = f'SELECT {subject} FROM {table} WHERE "indexedAt" >= %s'
    return [str(found) for (found,) in database.execute(sql.encode(), (since,))]
