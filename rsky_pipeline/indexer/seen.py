"""Which notifications an account has seen, as bsync passes it on.

`app.bsky.notification.updateSeen` is written neither to a repo nor to a log of bsync: since release
0.0.278 the AppView asks bsync to fan it out, and bsync calls `bsky.Service/UpdateNotificationSeen`
of each data plane, by gRPC over HTTP/2. The open data plane has only HTTP/1.1, so this serves that
one method. The answer "stored" is given after the commit. Calls that come while one is written are
written together, by the next transaction. They may come in any order and repeatedly: the latest
time of an account stands, whichever was first.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import trio

from rsky_pipeline.atproto.syntax import is_did
from rsky_pipeline.database.connection import Database
from rsky_pipeline.health.rules import SEEN_DENIED, SEEN_PORT, RuleVerdict, judged
from rsky_pipeline.network.grpc import GrpcError, GrpcServer, GrpcStatus
from rsky_pipeline.observability.indexer import IndexerMetrics
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.coalescer import Coalescer
from rsky_pipeline.runtime.errors import StoreError
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.runtime.logging import ThrottledLog

_log = logging.getLogger(__name__)
PATH = "/bsky.Service/UpdateNotificationSeen"
OPEN_AGAIN_SECONDS = 5.0
MAX_SEEN = 500  # accounts in one transaction
SEEN_LIMITS = {"lock_timeout_ms": 3_000, "statement_timeout_ms": 5_000}  # a user waits
# Of a google.protobuf.Timestamp: the years 1 to 9999.
MIN_SECONDS, MAX_SECONDS, MAX_NANOS = -62_135_596_800, 253_402_300_799, 999_999_999
RESULTS: Mapping[GrpcStatus, str] = {
    GrpcStatus.OK: "stored",
    GrpcStatus.INVALID_ARGUMENT: "invalid",
    GrpcStatus.DEADLINE_EXCEEDED: "slow",
    GrpcStatus.RESOURCE_EXHAUSTED: "too_much",
    GrpcStatus.UNIMPLEMENTED: "unknown_method",
    GrpcStatus.INTERNAL: "failed",
    GrpcStatus.UNAVAILABLE: "unavailable",
    GrpcStatus.UNAUTHENTICATED: "denied",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INTEGER, _BYTES = 0, 2  # kinds of protobuf fields
_SIZES = {1: 8, _BYTES: 0, 5: 4}  # of the others; that of bytes is given with them

# Times are compared as texts, byte by byte, whatever the collation of the database.
_UPSERT = """
INSERT INTO actor_state (did, "lastSeenNotifs", "priorityNotifs")
SELECT did, at, false FROM unnest(%b::text[], %b::text[]) AS given (did, at)
ON CONFLICT (did) DO UPDATE SET "lastSeenNotifs" = excluded."lastSeenNotifs"
WHERE actor_state."lastSeenNotifs" COLLATE "C" < excluded."lastSeenNotifs" COLLATE "C"
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """An account has seen its notifications up to a time, `YYYY-MM-DDTHH:MM:SS.mmmZ`."""

    did: str
    at: str


class SeenService:
    """Serves the method while `run` runs."""

    def __init__(
        self, host: str, port: int, token: str, open_database: Callable[[], Database],
        metrics: IndexerMetrics,
    ) -> None:  # fmt: skip
        self._host, self._port = host, port
        self._metrics = metrics
        self._throttled = ThrottledLog(_log)
        self._port_taken: Sequence[RuleVerdict] = ()
        self._denied_at = -math.inf  # when a call had another token, and none since had ours
        self._database = Link(
            open_database, purpose="storing seen notifications",
            failed=lambda _: metrics.fail(metrics.database_failures),
        )  # fmt: skip
        self._writes = Coalescer(self._write, MAX_SEEN)
        self._server = GrpcServer(
            {PATH: self._update}, token,
            count=self._count,
            boundary=Boundary(metrics.internal_error),
        )  # fmt: skip

    @property
    def found(self) -> Sequence[RuleVerdict]:
        """The findings: the port cannot be had, or the callers have another token."""
        if trio.current_time() - self._denied_at > SEEN_DENIED.seconds:
            return self._port_taken
        figure = "a call was refused, and none with our token has come since"
        return [*self._port_taken, judged(SEEN_DENIED, "", 1, figure)]

    async def run(self) -> None:
        """Serve until cancelled; a port that another program has is tried again."""
        with closing(self._database):
            while True:
                try:
                    listeners = await trio.open_tcp_listeners(self._port, host=self._host)
                except OSError as error:
                    figure = f"{self._host}:{self._port}: {error.strerror or error}"
                    self._port_taken = [RuleVerdict(SEEN_PORT, "", "fail", figure)]
                    await trio.sleep(OPEN_AGAIN_SECONDS)
                    continue
                self._port_taken = ()
                _log.info(
                    "serving UpdateNotificationSeen", extra={"host": self._host, "port": self._port}
                )
                await self._server.serve(listeners)

    def _count(self, status: GrpcStatus) -> None:
        result = RESULTS[status]
        self._metrics.seen.labels(result).inc()
        denied = status == GrpcStatus.UNAUTHENTICATED
        self._denied_at = trio.current_time() if denied else -math.inf
        if status != GrpcStatus.OK:
            self._throttled.warning("UpdateNotificationSeen failed", key=result, result=result)

    async def _update(self, message: bytes) -> bytes:
        failure = await self._writes.call(read_seen(message))
        if failure is not None:
            raise GrpcError(failure, "the database did not take it")
        return b""

    async def _write(self, items: Sequence[Seen]) -> Sequence[GrpcStatus | None]:
        """Return the reason for a failure of each, None for success."""
        failure = None
        try:
            await self._database.call(lambda database: store_seen(database, items))
        except StoreError as error:
            failure = GrpcStatus.UNAVAILABLE if error.retryable else GrpcStatus.INTERNAL
        return [failure] * len(items)


def store_seen(database: Database, items: Sequence[Seen]) -> None:
    """Store the latest time of each account, unless a later one is stored. Raises DatabaseError."""
    latest: dict[str, str] = {}
    for each in sorted(items, key=lambda each: (each.did, each.at)):
        latest[each.did] = each.at
    database.execute(_UPSERT, [list(latest), list(latest.values())])


def read_seen(message: bytes) -> Seen:
    """Read an UpdateNotificationSeenRequest (actor_did 1, timestamp 2); GrpcError if it is none."""
    did, time = b"", b""
    for number, value in _fields(message):
        if number == 1 and isinstance(value, bytes):
            did = value
        elif number == 2 and isinstance(value, bytes):
            time += value  # parts of a message that is given twice are merged
    text = did.decode("utf-8", errors="replace")
    if not is_did(text):
        raise _invalid("actor_did is not a DID")
    if not time:
        raise _invalid("there is no timestamp")
    return Seen(text, _time_text(time))


def _time_text(message: bytes) -> str:
    """Return a google.protobuf.Timestamp (seconds 1, nanos 2) as text, in milliseconds."""
    numbers = {1: 0, 2: 0}
    for number, value in _fields(message):
        if number in numbers and isinstance(value, int):
            numbers[number] = value
    seconds, nanos = numbers.values()
    if not (MIN_SECONDS <= seconds <= MAX_SECONDS and 0 <= nanos <= MAX_NANOS):
        raise _invalid("the timestamp is out of range")
    # Rounded up as the official data plane does: nothing that was seen is unread again.
    whole = timedelta(seconds=seconds, milliseconds=math.ceil(nanos / 1_000_000))
    try:
        text = (_EPOCH + whole).isoformat(timespec="milliseconds")
    except OverflowError:
        raise _invalid("the timestamp is out of range") from None
    return text.replace("+00:00", "Z")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a protobuf message; GrpcError if it is none.

    Integers are read as int64; those of fixed size are yielded as bytes.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _INTEGER:
            value, at = _varint(message, at)
            yield number, value - (1 << 64) if value >> 63 else value
            continue
        if kind not in _SIZES:
            raise _invalid("the message is not protobuf")
        size = _SIZES[kind]
        if kind == _BYTES:
            size, at = _varint(message, at)
        if size > len(message) - at:
            raise _invalid("the message is cut off")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return an unsigned integer of 64 bits, and the position behind it."""
    value = 0
    for place, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value & ((1 << 64) - 1), at + place + 1
    raise _invalid("the message is cut off")


def _invalid(message: str) -> GrpcError:
    return GrpcError(GrpcStatus.INVALID_ARGUMENT, message)
