"""bsync as a source: what users do privately in the AppView, as three logs of operations.

A `BsyncFollower` is the task that follows one log: it asks for the operations after the cursor, and
bsync answers at once, or when there are some, or with none after some seconds. Each becomes an
entry of `bsync_live`; the writer stores the cursor in the same step.

Three things a reader has to see by itself:

- Ids are taken when an operation is inserted, and it is visible when its transaction commits. One
  that commits after a higher one is never served behind the cursor. So wherever ids jump they are
  asked for again, a second later and a few times more.
- A bsync with another database (a new one, a backup) is not noticed by a cursor that is too high
  for it: nothing would ever come. So the newest operations that were read are remembered with the
  cursor, and compared before reading goes on. If they are not there any more an operator decides;
  `cursor reset` begins another reading, whose operations come after all of those before.
- No operation has a time. One that comes before the end of its log was reached for the first time
  is history, and the indexer takes the time from its key.

Applying an operation twice changes nothing, so all doubts are resolved by reading again.
https://connectrpc.com/docs/protocol/
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import Any

import orjson
import trio

from rsky_pipeline.atproto.datetimes import format_utc
from rsky_pipeline.configuration.advice import advised
from rsky_pipeline.configuration.endpoints import Endpoint, HostKey
from rsky_pipeline.database.connection import Database
from rsky_pipeline.health.rules import (
    BSYNC,
    BSYNC_REFUSED,
    BSYNC_REPLACED,
    RuleVerdict,
    Status,
    judged,
)
from rsky_pipeline.ingester.frames import PendingFrame
from rsky_pipeline.ingester.sequence import InvalidCursorError
from rsky_pipeline.ingester.writer import SourceBatch, Writer
from rsky_pipeline.network.http import HttpClient, HttpError
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.bsync import (
    BSYNC_READINGS,
    MAX_ID,
    MAX_OPERATION,
    MAX_READING,
    OPERATION_FIELD,
    BsyncEntry,
    digest,
    reading_of,
)
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.names import BSYNC_LIVE, CURSOR_POSITIONS, cursor_key

_log = logging.getLogger(__name__)
METHODS = {
    "mute": "ScanMuteOperations", "notif": "ScanNotifOperations", "operation": "ScanOperations",
}  # fmt: skip
PAGE_OPERATIONS = 500
MAX_ANSWER = 8 * 1024 * 1024  # bytes; a page that is larger is asked for in parts
# bsync answers after BSYNC_LONG_POLL_TIMEOUT_MS (10 s) at the latest.
SILENCE_SECONDS = 75.0
TOTAL_SECONDS = 120.0
RECENT = 16  # newest operations that are remembered with the cursor
JUMP_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)  # until ids that jumped are asked for again
MAX_JUMPS = 100
CHECK_SECONDS = 10.0  # between looks for operations that are gone
# After a loss of Redis, so many operations below the newest one in the database are read again:
# other workers may have had some of them in hand.
MARGIN_OPERATIONS = 100_000
BACKOFF_SECONDS = (1.0, 30.0)  # after a failure: the least and the longest pause
_REFUSALS = frozenset({400, 401, 403, 404, 405, 415, 501})  # which only an operator can end

_APPLIED = "SELECT place, digest, history FROM rsky_pipeline.bsync_log WHERE log = %s"


@dataclass(frozen=True, slots=True)
class Scan:
    """The answer to a scan: operations by rising id, and from where to go on."""

    operations: tuple[tuple[int, dict[str, Any]], ...]
    next: int
    unreadable: int  # operations without an id


class BsyncClient:
    """Scans of one bsync service."""

    def __init__(self, http: HttpClient, endpoint: Endpoint, key: str | None) -> None:
        self._http = http
        self._endpoint = endpoint
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    async def scan(self, log: str, after: int, limit: int = PAGE_OPERATIONS) -> Scan:
        """Return the operations after an id; waits for some, but not for long. Raises HttpError."""
        url = self._endpoint.http_url(f"/bsync.Service/{METHODS[log]}")
        # The empty cursor is the beginning, and numbers of 64 bits are texts in proto3 JSON.
        wanted = {"cursor": str(after) if after else "", "limit": limit}
        answer = await self._http.post_json(
            url, wanted, headers=self._headers, max_bytes=MAX_ANSWER, total_seconds=TOTAL_SECONDS
        )
        return read_scan(answer, after)


def read_scan(answer: object, after: int) -> Scan:
    """Read the answer to a scan. Raises HttpError for one that is none."""
    served = answer.get("operations", []) if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or not isinstance(served, list):
        raise HttpError("malformed", "bsync answers with something else than operations")
    found = {
        number: operation
        for operation in served
        if isinstance(operation, dict)
        and (number := _id(operation.get("id"))) is not None
        and number > after
    }
    end = _id(answer.get("cursor")) or 0
    return Scan(tuple(sorted(found.items())), max(after, end, *found), len(served) - len(found))


def _id(value: object) -> int | None:
    if not isinstance(value, str) or not (value.isascii() and value.isdigit()):
        return None
    number = int(value) if len(value) < 20 else MAX_ID + 1
    return number if number <= MAX_ID else None


@dataclass(slots=True)
class SkippedIds:
    """Ids that were left out between two operations, and may still become visible."""

    low: int
    high: int
    due: float
    tries: int = 0
    found: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class LogReading:
    """The number of the reading of a log, and whether its end was reached once."""

    number: int = 0
    live: bool = False


class BsyncFollower:
    """The task that follows one log."""

    def __init__(
        self, log: str, client: BsyncClient, writer: Writer, store: Link[Store],
        database: Link[Database] | None, metrics: IngesterMetrics, boundary: Boundary,
        troubles: ThrottledLog,
    ) -> None:  # fmt: skip
        """`database` is asked where Redis does not hold a cursor. `troubles` is of all logs."""
        self.log = log
        self.cursor = writer.cursor(cursor_key(BSYNC_LIVE, HostKey(log)), self._count)
        self.cursor.notes = self._notes
        self._client = client
        self._writer = writer
        self._store = store
        self._database = database
        self._metrics = metrics
        self._boundary = boundary
        self._troubles = troubles
        self._reading: LogReading | None = None
        self._at = 0  # up to this id everything was asked for
        self._recent: deque[tuple[int, str]] = deque(maxlen=RECENT)
        self._compared = False  # that they are still there
        self._limit = PAGE_OPERATIONS
        self._answers = 0
        self._jumps: list[SkippedIds] = []
        self.failed: HttpError | None = None
        self.failing_since = inf
        self.invalid: str | None = None  # why the stored cursor is none
        self.gone: str | None = None  # what is not there any more of that which was read
        self.replaced = False  # and something else is

    async def run(self, stopping: trio.Event) -> None:
        """Follow the log until `stopping`; the writer writes what was read."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            await stopping.wait()
            nursery.cancel_scope.cancel()

    async def _follow(self) -> None:
        """Read until cancelled: again from the stored cursor whenever somebody has moved it."""
        backoff = Backoff(*BACKOFF_SECONDS)
        while True:
            answers = self._answers
            try:
                await self._load()
                await self._session()
                continue
            except* HttpError as group:
                self._note_failure(_first(group))
            except* InvalidCursorError as group:
                self.invalid = str(_first(group))
            except* Exception as group:  # noqa: BLE001 - see runtime.boundary
                self._boundary.caught(_first(group), "bsync", log=self.log)
            self._compared = False  # it may be another one, once it answers again
            if self._answers > answers:
                backoff = Backoff(*BACKOFF_SECONDS)
            backoff, pause = backoff.failed(trio.current_time())
            with trio.move_on_after(max(BACKOFF_SECONDS[0], pause)):
                await self.cursor.moved.wait()

    async def _session(self) -> None:
        """Read until somebody moves the cursor. Raises HttpError, in a group."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_moved, nursery.cancel_scope)
            nursery.start_soon(self._ask_again)
            await self._compare()
            while True:
                await self._read_page()

    async def _cancel_when_moved(self, scope: trio.CancelScope) -> None:
        await self.cursor.moved.wait()
        scope.cancel()

    async def _load(self) -> None:
        """Find out where to go on, unless that is known. Raises InvalidCursorError."""
        if self._reading is not None and not self.cursor.moved.is_set():
            return
        await self.cursor.load()
        self.invalid = None
        self._jumps = []
        self._compared = False
        cursor, position = self.cursor.stored, self.cursor.position
        noted, recent, begun = await self._store.retry(self._read_notes)
        known = max(self._reading or LogReading(), noted or LogReading(), key=lambda it: it.number)
        if self._reading is not None and noted is None:
            known = self._reading
        start = cursor or 0
        if cursor is None and begun:
            pass  # and nothing has come since
        elif cursor is None and position is not None and position.reset:
            begun = True
            known, recent = LogReading(min(known.number + 1, MAX_READING)), []
            _log.warning(
                "reading a log of bsync from its beginning, as of a new database",
                extra={"log": self.log, "reading": known.number},
            )
        elif cursor is None or (noted is None and self._reading is None):
            applied = await self._applied()
            if applied is not None and applied[0].number >= known.number:
                known, number, recent = applied[0], applied[1], [(applied[1], applied[2])]
                start = max(0, number - MARGIN_OPERATIONS) if cursor is None else cursor
            elif cursor is None and self.cursor.last_known:
                start = max(0, self.cursor.last_known - MARGIN_OPERATIONS)
        if noted != known:
            await self._store.retry(partial(self._note_reading, reading=known, begun=begun))
        self._reading = known
        self._at = self.cursor.began = start
        self._recent = deque(recent, RECENT)

    def _read_notes(self, store: Store) -> tuple[LogReading | None, list[tuple[int, str]], bool]:
        """Return the reading, the newest operations that the stored cursor covers, and whether the
        reading has begun by a reset of the cursor, and nothing has come since."""
        recent: list[tuple[int, str]] = []
        note = _object(store.call("HGET", CURSOR_POSITIONS, self.cursor.key))
        # One that an operator has set has none of them, and so is not compared.
        for pair in note.get("recent") or ():
            match pair:
                case [int(number), str(text)]:
                    recent.append((number, text))
        noted = store.call("HGET", BSYNC_READINGS, self.log)
        if noted is None:
            return None, recent, False
        body = _object(noted)
        known = body.get("reading")
        if not isinstance(known, int) or not 0 <= known <= MAX_READING:
            known = 0
        begun = note.get("reset") is True and note.get("begun") is True
        return LogReading(known, body.get("live") is True), recent, begun

    def _note_reading(self, store: Store, reading: LogReading, begun: bool = False) -> None:
        note = orjson.dumps({"reading": reading.number, "live": reading.live})
        store.call("HSET", BSYNC_READINGS, self.log, note)
        if begun:
            note = orjson.dumps({"reset": True, "begun": True})
            store.call("HSET", CURSOR_POSITIONS, self.cursor.key, note)

    async def _applied(self) -> tuple[LogReading, int, str] | None:
        """Return reading, id and digest of the newest operation in the database, if there is one.

        Waits for a database that does not answer: reading a long log again would take longer.
        """
        if self._database is None:
            return None
        rows = await self._database.retry(partial(_read_applied, log=self.log))
        if not rows:
            return None
        place, text, history = rows[0]
        reading, number = reading_of(place)
        return LogReading(reading, live=not history), number, text

    async def _compare(self) -> None:
        """Return when the operations that were read last are still those of bsync."""
        if not self._recent and self._at:  # an operator has set the cursor: to these, whatever was
            scan = await self._client.scan(self.log, max(0, self._at - 4 * RECENT), 4 * RECENT)
            self._note_answer()
            self._remember(it for it in scan.operations if it[0] <= self._at)
            self._compared = True
        while self._recent and not self._compared:
            first = self._recent[0][0]
            scan = await self._client.scan(self.log, first - 1, 4 * RECENT)
            self._note_answer()
            self.gone, self.replaced = _difference(dict(self._recent), scan.operations)
            if self.gone is None:
                known = dict(self._recent)
                self._put_late(it for it in scan.operations if it[0] not in known)
                break
            self._troubles.error(
                "operations of bsync that were read are gone", key=self.log, log=self.log,
                detail=self.gone, advice=self.advice,
            )  # fmt: skip
            await trio.sleep(CHECK_SECONDS)
        if self._recent and self._recent[-1][0] > self._at:
            self._recent.clear()  # of the database; those below it are read again first
        self.gone, self.replaced, self._compared = None, False, True

    async def _read_page(self) -> None:
        """Ask for the next operations, and wait until they are written. Raises HttpError."""
        reading = self._reading or LogReading()
        try:
            scan = await self._client.scan(self.log, self._at, self._limit)
        except HttpError as error:
            if error.kind != "too_big":
                raise
            self._read_less(error)
            return
        self._note_answer()
        if scan.unreadable:
            self._metrics.error("invalid_operation", scan.unreadable)
            self._troubles.error("operations of bsync without an id", key="id", log=self.log)
        is_end = len(scan.operations) + scan.unreadable < self._limit
        self._note_jumps(scan, is_end)
        self._remember(scan.operations)
        self._put(scan.operations, covered=True)
        self._at, self._limit = scan.next, min(2 * self._limit, PAGE_OPERATIONS)
        if scan.operations:  # else it would keep the writer from its looks at the cursors
            await self._writer.flush()
        if is_end and not reading.live and not self.cursor.moved.is_set():
            self._reading = LogReading(reading.number, live=True)
            await self._store.retry(partial(self._note_reading, reading=self._reading))

    def _read_less(self, error: HttpError) -> None:
        """Ask for fewer operations at a time, and step over one that is too large by itself."""
        if self._limit > 1:
            self._limit //= 2
            return
        self._at += 1
        self._metrics.error("oversize_message")
        self._troubles.error(
            "skipped an operation of bsync that is too large", key="size", log=self.log,
            after=self._at - 1, error=error,
        )  # fmt: skip

    def _remember(self, operations: Iterable[tuple[int, dict[str, Any]]]) -> None:
        self._recent.extend((number, digest(each)) for number, each in operations)

    def _put(self, operations: Iterable[tuple[int, dict[str, Any]]], *, covered: bool) -> None:
        """Hand operations to the writer; `covered`: the cursor follows them."""
        reading, arrived = self._reading or LogReading(), format_utc(datetime.now(UTC))
        frames = []
        for number, served in operations:
            entry = BsyncEntry(
                self.log, reading.number, number, arrived, not reading.live, _bounded(served)
            )
            payload = entry.payload()
            frames.append(
                PendingFrame(
                    number if covered else None, arrived,
                    [Entry(BSYNC_LIVE, OPERATION_FIELD, payload)], len(payload),
                )
            )  # fmt: skip
        if frames:
            self.cursor.put(frames)

    def _put_late(self, operations: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """Write operations below the cursor; any that were written before change nothing."""
        late = [each for each in operations if each[0] <= self._at]
        self._put(late, covered=False)
        if late:
            self._metrics.bsync_late.labels(self.log).inc(len(late))
            _log.info(
                "operations of bsync became visible after later ones",
                extra={"log": self.log, "ids": [number for number, _ in late][:10]},
            )

    def _note_jumps(self, scan: Scan, is_end: bool) -> None:
        """Note ids that were left out, to ask for them again.

        Only near the end of the log: what is followed by full pages was committed long ago.
        """
        if not is_end:
            self._jumps = [jump for jump in self._jumps if jump.tries]
        due = trio.current_time() + JUMP_SECONDS[0]
        before = self._at
        for number, _ in scan.operations:
            if before and number > before + 1:
                self._jumps.append(SkippedIds(before, number, due))
            before = number
        self._jumps = self._jumps[-MAX_JUMPS:]

    async def _ask_again(self) -> None:
        """Ask again for ids that were left out, until cancelled."""
        while True:
            await trio.sleep(JUMP_SECONDS[0] / 2)
            now = trio.current_time()
            for jump in [jump for jump in self._jumps if jump.due <= now]:
                try:
                    scan = await self._client.scan(self.log, jump.low)
                except HttpError:
                    break  # whoever reads the log meets it, too
                late = [
                    each
                    for each in scan.operations
                    if each[0] < jump.high and each[0] not in jump.found
                ]
                self._put_late(late)
                jump.found.update(number for number, _ in late)
                jump.tries += 1
                whole = len(jump.found) == jump.high - jump.low - 1
                if whole or jump.tries == len(JUMP_SECONDS):
                    self._jumps = [other for other in self._jumps if other is not jump]
                else:
                    jump.due = trio.current_time() + JUMP_SECONDS[jump.tries]

    def _notes(self, seq: int) -> Mapping[str, Any]:
        """Return what is stored with a cursor: the newest operations up to it."""
        return {"recent": [each for each in self._recent if each[0] <= seq]}

    def _count(self, part: SourceBatch, lengths: Mapping[str, int]) -> None:
        self._metrics.bsync_operations.labels(self.log).inc(len(part.entries))
        if part.seq is not None:
            self._metrics.cursor.labels(BSYNC_LIVE, self.log).set(part.seq)

    def _note_answer(self) -> None:
        self.failed, self.failing_since = None, inf
        self._answers += 1
        self._metrics.bsync_answers.labels(self.log).inc()

    def _note_failure(self, error: HttpError) -> None:
        self.failing_since = min(self.failing_since, trio.current_time())
        self.failed = error
        self._metrics.error("bsync")
        self._troubles.warning(
            "bsync cannot be read", key=f"{error.kind} {error.status}", log=self.log,
            error=explained(error),
        )  # fmt: skip

    @property
    def advice(self) -> str:
        """The remedy where operations are gone, for operators."""
        stream = ("--stream", BSYNC_LIVE)
        reset = advised("cursor", "reset", self.log, *stream, "--force")
        go_on = advised("cursor", "set", self.log, str(self.cursor.stored or 0), *stream)
        return (
            f"if bsync has another database now, {reset} reads it from its beginning; else {go_on} "
            "goes on"
        )


def _read_applied(database: Database, log: str) -> list[tuple[Any, ...]]:
    if database.query("SELECT to_regclass('rsky_pipeline.bsync_log')")[0][0] is None:
        return []  # a database of an earlier version
    return database.query(_APPLIED, [log])


def bsync_verdicts(followers: Sequence[BsyncFollower]) -> Iterator[RuleVerdict]:
    """Yield what is wrong with bsync: its service once, its logs each."""
    now = trio.current_time()
    failing = [each for each in followers if each.failed is not None]
    if failing:
        logs = ", ".join(each.log for each in failing)
        worst = max((each.failed for each in failing if each.failed), key=is_refusal)
        away = now - min(each.failing_since for each in failing)
        figure = f"{logs}: {explained(worst)}"
        if is_refusal(worst):
            yield RuleVerdict(BSYNC_REFUSED, "", "fail", figure)
        else:
            yield judged(BSYNC, "", away, f"{figure} (for {away:.0f} s)")
    for each in followers:
        wrong = each.invalid or each.gone
        if wrong is not None:
            status: Status = "fail" if each.invalid or each.replaced else "warn"
            yield RuleVerdict(BSYNC_REPLACED, each.log, status, wrong, remedy=each.advice)


def is_refusal(error: HttpError) -> bool:
    """Return whether a failure is one that only an operator can end."""
    return error.kind == "status" and error.status in _REFUSALS


def explained(error: HttpError) -> str:
    """Return a failure in words for operators."""
    if error.status in (401, 403):
        return f"bsync refuses bsync_key ({error.status})"
    if error.status in (404, 405, 501):
        return f"{error}: there is no bsync, or an older one without this method"
    return str(error)


def _difference(
    known: Mapping[int, str], served: Sequence[tuple[int, dict[str, Any]]]
) -> tuple[str | None, bool]:
    """Compare the operations that were read last with those that bsync serves from the first on.

    Returns what is gone, None if it is the same log, and whether it is surely another one. A last
    operation that is gone may have been deleted (moderation does that), if others are there and
    ids went on since.
    """
    found = {number: digest(operation) for number, operation in served}
    other = [number for number, text in known.items() if found.get(number, text) != text]
    last = max(known)
    if other:
        return f"operation {other[0]} is another one than before", True
    if last in found:
        return None, False
    same = any(number in found for number in known)
    if same and max(found) > last:
        return None, False
    return f"operation {last}, which was read, is not there any more", not same


def _bounded(served: dict[str, Any]) -> dict[str, Any]:
    """Return an operation without a payload that is too large; the indexer refuses it then."""
    payload = served.get("payload")
    if isinstance(payload, str) and len(payload) > 4 * MAX_OPERATION // 3 + 4:
        return {**served, "payload": None, "tooLarge": len(payload)}
    return served


def _object(note: bytes | None) -> dict[str, Any]:
    try:
        body = orjson.loads(note or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _first(group: BaseExceptionGroup[Any]) -> Any:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
