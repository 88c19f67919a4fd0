"""Following one stream of one host: connect, read, hand over, write, connect again.

A `Follower` is a task of its own. Whatever ends a connection, everything read from it is written
before the next one is opened, which then starts at the stored cursor. The intake that it opens for
each connection decides about the frames.
"""

import logging
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp, inf, log
from typing import Protocol

import trio

from rsky_pipeline.atproto.frame import ErrorMessage
from rsky_pipeline.configuration.advice import advised
from rsky_pipeline.configuration.endpoints import Endpoint
from rsky_pipeline.configuration.proxy import Proxy
from rsky_pipeline.configuration.settings import InitialCursor
from rsky_pipeline.configuration.topology import FIREHOSE_LIVE
from rsky_pipeline.health.rules import RELAY_STALLED
from rsky_pipeline.ingester.clock import ClockError
from rsky_pipeline.ingester.frames import FrameConverter
from rsky_pipeline.ingester.sequence import (
    InvalidCursorError,
    SeqGate,
    start_position,
    timestamp,
)
from rsky_pipeline.ingester.writer import SourceCursor
from rsky_pipeline.network.subscription import (
    DisconnectedError,
    DisconnectReason,
    Subscription,
    Timeouts,
    subscribe,
)
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.errors import StoreError, described
from rsky_pipeline.runtime.logging import ThrottledLog

_log = logging.getLogger(__name__)

# How long to wait where only an operator can help; not for ever, since they may have.
_OPERATOR_SECONDS = 60.0
STANDS_AFTER_SECONDS = 5.0  # a connection that ended sooner was none, for all that is known
CLOCK_SECONDS = 10.0  # until events that seem to come from the future are looked at again
_OPERATOR_LOOK_SECONDS = 1.0  # at the stored cursor meanwhile
_DEFAULT_IDLE = 60.0
_SLOTS = 6  # of `Arrivals` in the time after which a silent host is connected to again
_HABIT_SECONDS = 7_200.0  # how long the habits of a host are remembered
_MOST_BUSY = 0.97  # no host is so busy that a single slot without events means anything
_MOST_IDLE = 60  # times that time: a quiet host is connected to again no sooner
_ON_PURPOSE = frozenset({DisconnectReason.PRESSURE, DisconnectReason.CURSOR_MOVED})
# Of the host, which a connection that comes about does not make good.
_FAULTS = frozenset(
    {DisconnectReason.PROTOCOL_ERROR, DisconnectReason.PING_TIMEOUT, DisconnectReason.ERROR_FRAME}
)
_MOST_ACCIDENTS = 1  # of them in a row
_ERROR_FRAMES = {
    "FutureCursor": DisconnectReason.FUTURE_CURSOR,
    "ConsumerTooSlow": DisconnectReason.CONSUMER_TOO_SLOW,
}


@dataclass(slots=True)
class Backpressure:
    """When one reader stops, goes on, and gives its connection up. Times are monotonic seconds.

    A host drops a connection that is not read for long, late and without a close frame; closing it
    and subscribing again from the cursor is better for both sides.
    """

    max_events: int
    max_bytes: int
    patience: float = 5.0  # of a pause, before the connection is closed
    since: float | None = None  # start of the present pause

    @property
    def active(self) -> bool:
        """Whether reading is held up."""
        return self.since is not None

    def observe(self, events: int, size: int, now: float) -> bool:
        """Tell whether reading may go on with so many events and bytes in memory.

        A pause ends at half of the limits, so that it is not entered again at once.
        """
        if self.since is None:
            if events >= self.max_events or size >= self.max_bytes:
                self.since = now
        elif events <= self.max_events // 2 and size <= self.max_bytes // 2:
            self.since = None
        return self.since is None

    def close_at(self) -> float:
        """Return when a pause has become too long for an open connection."""
        if self.since is None:
            raise ValueError("reading is not held up")
        return self.since + self.patience


class Arrivals:
    """How regularly a host sends, to tell one that is quiet from one that has stopped.

    Time is cut into slots; counted are those in which something came, not events, since a host
    sends thousands at once when it is read again from a cursor. Slots of the last hours count most.
    A host that was never busy is quiet, however long it says nothing.
    """

    def __init__(self, slot_seconds: float, now: float) -> None:
        self.last = now  # when something came last; to begin with, when counting began
        self._seconds = slot_seconds
        self._keep = exp(-slot_seconds / _HABIT_SECONDS)
        self._slot = self._place(now)
        self._slots = 0.0  # that count
        self._busy = 0.0  # of them, in which something came

    def observe(self, now: float) -> None:
        """Note that something came."""
        self.last = now
        slot = self._place(now)
        if slot == self._slot and self._slots:
            return
        passed = max(slot - self._slot, 1)
        kept = self._keep**passed
        self._slots = self._slots * kept + (1.0 - kept) / (1.0 - self._keep)
        self._busy = self._busy * kept + 1.0
        self._slot = slot

    @property
    def known(self) -> bool:
        """Whether anything has come, so that there is a habit to compare a silence with."""
        return self._busy > 0.0

    @property
    def habit(self) -> float:
        """By how much each further slot of silence is a surprise: -log of its probability."""
        return -log(1.0 - min(self._busy / (self._slots + 1.0), _MOST_BUSY))

    def surprise(self, now: float) -> float:
        """Return how unlikely the present silence is for this host: -log of its probability."""
        return (now - self.last) / self._seconds * self.habit

    def patience(self, surprise: float) -> float:
        """Return the seconds of silence after which it is so unlikely."""
        return surprise / self.habit * self._seconds if self.habit > 0.0 else inf

    def _place(self, now: float) -> int:
        return int(now / self._seconds)


class Intake(Protocol):
    """Takes the frames of one connection; `pipeline.FrameIntake` and `labels.LabelIntake` do."""

    async def take(self, messages: Sequence[bytes]) -> None:
        """Take frames as they came from the socket, then wait while too many are undecided.

        Raises the errors of the store, and ClockError.
        """


# Returns the intake of a new connection, whose background tasks run in the nursery.
OpenIntake = Callable[[SeqGate, trio.Nursery], Intake]


@dataclass(frozen=True, slots=True)
class Feed:
    """A stream of a host, and how to read it."""

    endpoint: Endpoint
    nsid: str
    initial: InitialCursor
    timeouts: Timeouts
    tls: ssl.SSLContext | None = None
    proxy: Proxy | None = None


class Follower:
    """The task that follows one feed."""

    def __init__(
        self,
        feed: Feed,
        converter: FrameConverter,
        cursor: SourceCursor,
        pressure: Backpressure,
        metrics: IngesterMetrics,
        open_intake: OpenIntake,
    ) -> None:
        self.feed = feed
        self.cursor = cursor
        self.writer = cursor.writer
        self._converter = converter
        self._open_intake = open_intake
        self._pressure = pressure
        self._metrics = metrics
        self._log = ThrottledLog(_log)
        self._cursor_is_loaded = False
        self.connected_at: float | None = None  # of the present or last connection
        self.connected = False
        self.was_connected = trio.Event()
        self.attempted = trio.Event()  # set when the first attempt has succeeded or failed
        self.heard_at = trio.current_time()  # of the last frame, or of when it was first tried
        self._idle = feed.timeouts.idle
        self.arrivals = Arrivals((self._idle or _DEFAULT_IDLE) / _SLOTS, self.heard_at)
        self._silent = 0  # connections in a row over which nothing came
        # Since when connections come about and end by a fault of the host before any event; None
        # where one did not. The first one may be an accident.
        self.futile_since: float | None = None
        self._futile = 0
        self.began_at: float | None = None  # time of the newest event before we began, since 1970
        self.ended: DisconnectedError | None = None  # why the last connection ended
        self.refused_cursor: int | None = None  # the stored one that did not fit the host

    async def run(self, stopping: trio.Event) -> None:
        """Follow the feed until `stopping`; the writer writes the frames that were read."""
        async with trio.open_nursery() as following:
            following.start_soon(self._follow, stopping)
            await stopping.wait()
            # An open socket is closed with a close frame; an attempt to connect is cancelled.
            goodbye = self.feed.timeouts.close + 1.0 if self.connected else 0.0
            following.cancel_scope.deadline = trio.current_time() + goodbye

    def _patience(self) -> float | None:
        """Return how long to wait for a frame before another connection may be better.

        A host that answers pings and says nothing is left alone where that is its habit. One that
        has said nothing since we know it is asked less and less often.
        """
        if self._idle is None:
            return None
        least, most = self._idle, self._idle * _MOST_IDLE
        usual = self.arrivals.patience(RELAY_STALLED.least)
        if usual == inf:
            usual = least * 2.0 ** min(self._silent + 1, 10)
        return min(max(usual, least), most)

    def report_counts(self) -> None:
        """Add the counters to the metrics, also of frames that were decided after the last read."""
        self._converter.counters.report(self._metrics, self.feed.endpoint.key)

    async def _follow(self, stopping: trio.Event) -> None:
        backoff = Backoff()
        while True:
            ended = await self._load_cursor() or await self._session(stopping)
            self._note_end(ended)
            if stopping.is_set():
                return
            with self._held_up(ended.reason is DisconnectReason.PRESSURE):
                await self.writer.flush()
            if ended.reason in _ON_PURPOSE:
                continue
            if self.connected_at is not None:
                backoff = backoff.worked(self.connected_at)
            backoff, wait = backoff.failed(trio.current_time())
            if ended.reason is DisconnectReason.FUTURE_CURSOR:
                await self._wait_for_operator()
            else:
                await trio.sleep(ended.retry_after or wait)

    async def _wait_for_operator(self) -> None:
        """Return when another cursor is stored, or after a while: the host may be another one."""
        self._cursor_is_loaded = False
        before: object = None
        with trio.move_on_after(_OPERATOR_SECONDS):
            while True:
                stored = await self.writer.read(self.cursor.key)
                # An operator may have been faster than the first look.
                if stored[0] != self.cursor.text or stored != (before or stored):
                    return
                before = stored
                await trio.sleep(_OPERATOR_LOOK_SECONDS)

    async def _load_cursor(self) -> DisconnectedError | None:
        """Load the stored cursor unless that was done; return why it is of no use, if so."""
        self.connected_at = None
        if self._cursor_is_loaded and not self.cursor.moved.is_set():
            return None
        try:
            await self.cursor.load()
        except InvalidCursorError as error:
            self._metrics.error("invalid_cursor")
            return DisconnectedError(DisconnectReason.FUTURE_CURSOR, str(error))
        position = self.cursor.position
        if self.began_at is None and position is not None:
            self.began_at = timestamp(position.time or "")
        self._cursor_is_loaded = True
        return None

    async def _session(self, stopping: trio.Event) -> DisconnectedError:
        """Connect and read until that ends; return why it did."""
        feed, cursor = self.feed, self.cursor
        position = cursor.began = start_position(cursor.stored, cursor.last_known, feed.initial)
        # Of the event of a stored cursor we have everything; a position asked for is included.
        seen = cursor.stored if cursor.stored is not None else (position or 0) - 1
        if cursor.position is not None:
            self._converter.time_before = cursor.position.time
        try:
            async with subscribe(
                feed.endpoint,
                feed.nsid,
                position,
                timeouts=feed.timeouts,
                ssl_context=feed.tls,
                proxy=feed.proxy,
            ) as subscription:
                with self._connection(position):
                    subscription.idle = self._patience()
                    return await self._read_until_ended(subscription, SeqGate(seen), stopping)
        except DisconnectedError as error:
            return error
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            self._converter.boundary.caught(error, "stream", **self._where())
            return DisconnectedError(DisconnectReason.INTERNAL_ERROR, described(error))

    async def _read_until_ended(
        self, subscription: Subscription, gate: SeqGate, stopping: trio.Event
    ) -> DisconnectedError:
        """Read until the connection ends, another cursor is found stored, or we are to stop."""
        ended = DisconnectedError(DisconnectReason.STOPPING, "stopping")
        async with trio.open_nursery() as nursery:
            intake = self._open_intake(gate, nursery)

            async def end_when(event: trio.Event, why: DisconnectedError) -> None:
                nonlocal ended
                await event.wait()
                ended = why
                nursery.cancel_scope.cancel()

            moved = DisconnectedError(DisconnectReason.CURSOR_MOVED, "another cursor is stored")
            nursery.start_soon(end_when, self.cursor.moved, moved)
            nursery.start_soon(end_when, stopping, ended)
            try:
                await self._read(subscription, intake, gate)
            except DisconnectedError as error:
                ended = error
            nursery.cancel_scope.cancel()
        return ended

    async def _read(self, subscription: Subscription, intake: Intake, gate: SeqGate) -> None:
        """Read the socket for ever. Raises DisconnectedError."""
        counters = self._converter.counters
        ignored = skipped = 0
        while True:
            messages = await subscription.receive()
            self._silent = self._futile = 0
            self.futile_since = None
            self.heard_at = trio.current_time()
            self.arrivals.observe(self.heard_at)
            subscription.idle = self._patience()
            try:
                await intake.take(messages)
            except StoreError as error:  # the frames are read again from the cursor
                detail = f"the states of repos cannot be read: {error}"
                raise DisconnectedError(DisconnectReason.STORE, detail) from error
            except ClockError as error:  # and are judged when it is right
                raise DisconnectedError(
                    DisconnectReason.CLOCK, str(error), CLOCK_SECONDS
                ) from error
            if (subscription.text_messages, subscription.oversize_messages) != (ignored, skipped):
                counters.errors["text_message"] += subscription.text_messages - ignored
                counters.errors["oversize_message"] += subscription.oversize_messages - skipped
                self._log.error("skipped text messages or oversize ones", **self._where())
                ignored, skipped = subscription.text_messages, subscription.oversize_messages
            self.report_counts()
            if self._converter.ended is not None:
                raise _ended_by(self._converter.ended)
            if gate.is_behind(trio.current_time()):
                detail = f"the host sends events far below the cursor {gate.last}"
                raise DisconnectedError(DisconnectReason.FUTURE_CURSOR, detail)
            await self._wait_while_full()

    async def _wait_while_full(self) -> None:
        """Return when the writer may be given more. Raises DisconnectedError if that takes long."""
        writer, pressure = self.writer, self._pressure
        if pressure.observe(writer.events, writer.bytes, trio.current_time()):
            return
        with self._held_up(True), trio.move_on_at(pressure.close_at()):
            while not pressure.observe(writer.events, writer.bytes, trio.current_time()):
                await writer.changed.park()
            return
        detail = f"nothing could be written for {pressure.patience:g} s"
        raise DisconnectedError(DisconnectReason.PRESSURE, detail)

    @contextmanager
    def _held_up(self, really: bool) -> Iterator[None]:
        """Show in the metrics that reading is held up."""
        if not really:
            yield
            return
        start = trio.current_time()
        self._metrics.backpressure.inc()
        try:
            yield
        finally:
            self._metrics.backpressure.dec()
            self._metrics.backpressure_seconds.inc(trio.current_time() - start)

    @contextmanager
    def _connection(self, position: int | None) -> Iterator[None]:
        """Show in the metrics that a socket is open."""
        _log.info("connected", extra={**self._where(), "from": "now" if position is None
                                      else position})  # fmt: skip
        self.connected_at = trio.current_time()
        self._converter.ended = None
        self._metrics.connections.inc()
        self.connected = True
        self.heard_at = trio.current_time()
        self.was_connected.set()
        self.attempted.set()
        try:
            yield
        finally:
            self.connected = False
            self._metrics.connections.dec()

    def _note_end(self, ended: DisconnectedError) -> None:
        self.attempted.set()
        self.ended = ended
        self._silent += ended.reason is DisconnectReason.IDLE
        if ended.reason in _FAULTS and self.arrivals.last <= (self.connected_at or 0.0):
            self._futile += 1
            if self._futile == _MOST_ACCIDENTS + 1:
                self.futile_since = trio.current_time()
        self.report_counts()
        self._metrics.disconnects.labels(ended.reason.value).inc()
        extra: dict[str, str | int | None] = {
            **self._where(),
            "reason": ended.reason.value,
            "detail": ended.detail,
        }
        if ended.reason is DisconnectReason.STOPPING:
            return
        if ended.reason in _ON_PURPOSE:
            _log.warning("closed the connection on purpose", extra=extra)
            return
        if ended.reason is DisconnectReason.FUTURE_CURSOR:
            self.refused_cursor = self.cursor.stored
            if self._cursor_is_loaded:  # else it is no number
                self.cursor.refuse()
            self._metrics.error("future_cursor")
            extra |= {"cursor_key": self.cursor.key, "cursor": self.cursor.stored}
            _log.error("stored cursor does not fit the host", extra=extra | {"advice": self.advice})
            return
        self._metrics.error("error_frame" if self._converter.ended else "connection")
        _log.warning("disconnected", extra=extra)

    @property
    def refused(self) -> bool:
        """Whether the stored cursor does not fit the host, and no operator has replaced it."""
        ended, since = self.ended, self.connected_at if self.connected else None
        # It is tried again now and then: the host may be another one.
        stands = since is not None and trio.current_time() - since >= STANDS_AFTER_SECONDS
        return (
            ended is not None
            and ended.reason is DisconnectReason.FUTURE_CURSOR
            and not stands
            and self.cursor.stored == self.refused_cursor
        )

    @property
    def refusal(self) -> str:
        """Why the stored cursor does not fit."""
        why = "" if self.ended is None else f" ({self.ended.detail})"
        return f"the stored cursor {self.refused_cursor} does not fit it{why}"

    @property
    def advice(self) -> str:
        """The remedy for a cursor that does not fit, for operators."""
        host, stream = self.feed.endpoint.key, self.cursor.key.partition(":")[0]
        which = () if stream == FIREHOSE_LIVE else ("--stream", stream)
        reset = advised("cursor", "reset", host, *which, "--force")
        go_on = advised("cursor", "set", host, "SEQ", *which)
        return f"decide where to go on: {reset} starts at initial_cursor, {go_on} at any event"

    def _where(self) -> dict[str, str]:
        return {"host": self.feed.endpoint.key, "stream": self.feed.nsid.rpartition(".")[2]}


def _ended_by(frame: ErrorMessage) -> DisconnectedError:
    reason = _ERROR_FRAMES.get(frame.error, DisconnectReason.ERROR_FRAME)
    return DisconnectedError(reason, f"{frame.error[:100]}: {(frame.message or '')[:300]}")
