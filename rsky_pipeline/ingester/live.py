"""Following one stream of one host: connect, read, convert, hand over to the writer, again.

Whatever ends a connection, everything read from it is written before the next one is opened, which
then starts at the stored cursor.
"""

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from rsky_pipeline.atproto.frame import ErrorMessage
from rsky_pipeline.configuration.endpoints import Endpoint
from rsky_pipeline.configuration.settings import InitialCursor
from rsky_pipeline.ingester.convert import Converter
from rsky_pipeline.ingester.cursor import InvalidCursor, start_position
from rsky_pipeline.ingester.gaps import GapWatch
from rsky_pipeline.ingester.intake import Intake
from rsky_pipeline.ingester.judge import Judge
from rsky_pipeline.ingester.label_proof import LabelProof
from rsky_pipeline.ingester.pressure import Pressure
from rsky_pipeline.ingester.seq_gate import SeqGate
from rsky_pipeline.ingester.verify import Verifier
from rsky_pipeline.ingester.writer import Lane
from rsky_pipeline.network.subscription import (
    DisconnectedError,
    DisconnectReason,
    Subscription,
    Timeouts,
    subscribe,
)
from rsky_pipeline.observability.ingester import IngesterMetrics
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable

_log = logging.getLogger(__name__)

# How long to wait where only an operator can help; not for ever, since they may have.
_OPERATOR_SECONDS = 60.0
_OPERATOR_LOOK_SECONDS = 1.0  # at the stored cursor meanwhile
_ON_PURPOSE = frozenset({DisconnectReason.PRESSURE, DisconnectReason.CURSOR_MOVED})
_ERROR_FRAMES = {
    "FutureCursor": DisconnectReason.FUTURE_CURSOR,
    "ConsumerTooSlow": DisconnectReason.CONSUMER_TOO_SLOW,
}


@dataclass(frozen=True, slots=True)
class Feed:
    """A stream of a host, and how to read it."""

    endpoint: Endpoint
    nsid: str
    initial: InitialCursor
    timeouts: Timeouts
    tls: ssl.SSLContext | None = None


class Follower:
    """The task that follows one feed."""

    def __init__(
        self,
        feed: Feed,
        converter: Converter,
        lane: Lane,
        pressure: Pressure,
        metrics: IngesterMetrics,
        verifier: Verifier | None = None,
        judge: Judge | None = None,
        labels: LabelProof | None = None,
    ) -> None:
        self.feed = feed
        self.lane = lane
        self.writer = lane.writer
        self._judge = judge
        self._labels = labels
        self._converter = converter
        self._pressure = pressure
        self._metrics = metrics
        self._verifier = verifier
        self._boundary = Boundary(converter.tally.internal_error)
        self._cursor_is_loaded = False
        self._connected_at: float | None = None
        self.connected = False
        self.was_connected = trio.Event()
        self.attempted = trio.Event()  # set when the first attempt has succeeded or failed
        self.heard_at = trio.current_time()  # of the last frame, or of when it was first tried
        self.ended: DisconnectedError | None = None  # why the last connection ended

    async def run(self, stopping: trio.Event) -> None:
        """Follow the feed until `stopping`; the writer writes what was read."""
        async with trio.open_nursery() as following:
            following.start_soon(self._follow, stopping)
            await stopping.wait()
            # An open socket is closed with a goodbye; anything else is simply left.
            goodbye = self.feed.timeouts.close + 1.0 if self.connected else 0.0
            following.cancel_scope.deadline = trio.current_time() + goodbye

    def report_counts(self) -> None:
        """Bring the metrics up to date, also with what was decided after its frame was read."""
        self._converter.tally.report(self._metrics, self.feed.endpoint.key)

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
            if self._connected_at is not None:
                backoff = backoff.worked(self._connected_at)
            backoff, wait = backoff.failed(trio.current_time())
            if ended.reason is DisconnectReason.FUTURE_CURSOR:
                await self._wait_for_operator()
            else:
                await trio.sleep(ended.retry_after or wait)

    async def _wait_for_operator(self) -> None:
        """Return when another cursor is stored, or after a while: the host may be another one."""
        self._cursor_is_loaded = False
        seen: list[object] = []
        with trio.move_on_after(_OPERATOR_SECONDS):
            while len(seen) < 2 or seen[-1] == seen[0]:
                try:
                    seen.append(await self.writer.read(self.lane.cursor_key))
                except (StoreUnavailable, StoreRejected):
                    self._metrics.error("store_unavailable")
                await trio.sleep(_OPERATOR_LOOK_SECONDS)

    async def _load_cursor(self) -> DisconnectedError | None:
        """Have the writer know the stored cursor; return what keeps it from it."""
        self._connected_at = None
        if self._cursor_is_loaded and not self.lane.moved.is_set():
            return None
        try:
            await self.lane.load_cursor()
        except InvalidCursor as error:
            self._metrics.error("invalid_cursor")
            return DisconnectedError(DisconnectReason.FUTURE_CURSOR, str(error))
        except StoreUnavailable as error:
            self._metrics.error("store_unavailable")
            return DisconnectedError(DisconnectReason.STORE, str(error))
        except StoreRejected as error:
            self._metrics.error("store_rejected")
            return DisconnectedError(DisconnectReason.STORE, str(error))
        self._cursor_is_loaded = True
        return None

    async def _session(self, stopping: trio.Event) -> DisconnectedError:
        """Connect and read until that ends; return why it did."""
        feed, lane = self.feed, self.lane
        position = start_position(lane.stored, lane.last_known, feed.initial)
        # Of the event of a stored cursor we have everything; a position asked for is included.
        seen = lane.stored if lane.stored is not None else (position or 0) - 1
        if lane.position is not None:
            self._converter.time_before = lane.position.time
        try:
            async with subscribe(
                feed.endpoint, feed.nsid, position, timeouts=feed.timeouts, ssl_context=feed.tls
            ) as subscription:
                with self._connection(position):
                    return await self._read_until_told(subscription, SeqGate(seen), stopping)
        except DisconnectedError as error:
            return error
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            self._boundary.caught(error, "stream", **self._where())
            return DisconnectedError(
                DisconnectReason.INTERNAL_ERROR, f"{type(error).__name__}: {error}"
            )

    async def _read_until_told(
        self, subscription: Subscription, gate: SeqGate, stopping: trio.Event
    ) -> DisconnectedError:
        """Read until the connection ends, another cursor is found stored, or we are to stop."""
        ended = DisconnectedError(DisconnectReason.STOPPING, "told to stop")
        async with trio.open_nursery() as nursery:
            intake = Intake(
                self._converter, self.lane, gate, nursery, self._verifier, self._judge,
                self._gaps(), self._labels,
            )  # fmt: skip

            async def end_when(event: trio.Event, why: DisconnectedError) -> None:
                nonlocal ended
                await event.wait()
                ended = why
                nursery.cancel_scope.cancel()

            moved = DisconnectedError(DisconnectReason.CURSOR_MOVED, "another cursor is stored")
            nursery.start_soon(end_when, self.lane.moved, moved)
            nursery.start_soon(end_when, stopping, ended)
            try:
                await self._read(subscription, intake, gate)
            except DisconnectedError as error:
                ended = error
            nursery.cancel_scope.cancel()
        return ended

    def _gaps(self) -> GapWatch | None:
        """Return what looks for a gap after the stored cursor, if there is one to continue."""
        if self.lane.stored is None or self._judge is None:
            return None
        return GapWatch(self.feed.endpoint.key, self.lane.stored, self.lane.position)

    async def _read(self, subscription: Subscription, intake: Intake, gate: SeqGate) -> None:
        """Take what comes. Raises DisconnectedError."""
        tally = self._converter.tally
        ignored = skipped = 0
        while True:
            messages = await subscription.receive()
            self.heard_at = trio.current_time()
            await self._take(intake, messages)
            if (subscription.text_messages, subscription.oversize_messages) != (ignored, skipped):
                tally.errors["text_message"] += subscription.text_messages - ignored
                tally.errors["oversize_message"] += subscription.oversize_messages - skipped
                _log.error("skipped messages that are texts or too big", extra=self._where())
                ignored, skipped = subscription.text_messages, subscription.oversize_messages
            self.report_counts()
            if self._converter.ended is not None:
                raise _ended_by(self._converter.ended)
            if gate.is_behind(trio.current_time()):
                detail = f"the host sends events far below the cursor {gate.last}"
                raise DisconnectedError(DisconnectReason.FUTURE_CURSOR, detail)
            await intake.room()
            await self._wait_while_full()

    async def _take(self, intake: Intake, messages: list[bytes]) -> None:
        """Hand frames over. Raises DisconnectedError if the store does not tell of their repos."""
        try:
            await intake.take(messages)
        except (StoreUnavailable, StoreRejected) as error:
            kind = "unavailable" if isinstance(error, StoreUnavailable) else "rejected"
            self._metrics.error(f"store_{kind}")
            detail = f"the states of repos cannot be read: {error}"
            raise DisconnectedError(DisconnectReason.STORE, detail) from error

    async def _wait_while_full(self) -> None:
        """Return when the writer may be given more. Raises DisconnectedError if that takes long."""
        if self._may_go_on():
            return
        with self._held_up(True), trio.move_on_at(self._pressure.close_at()):
            while not self._may_go_on():
                await self.writer.changed()
            return
        detail = f"nothing could be written for {self._pressure.patience:g} s"
        raise DisconnectedError(DisconnectReason.PRESSURE, detail)

    def _may_go_on(self) -> bool:
        writer = self.writer
        return self._pressure.observe(writer.events, writer.bytes, trio.current_time())

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
        self._connected_at = trio.current_time()
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
            self._metrics.error("future_cursor")
            extra |= {"cursor_key": self.lane.cursor_key, "cursor": self.lane.stored}
            _log.error(f"the stored cursor does not fit the host: {self.advice}", extra=extra)
            return
        self._metrics.error("error_frame" if self._converter.ended else "connection")
        _log.warning("disconnected", extra=extra)

    @property
    def advice(self) -> str:
        """What an operator can do about a cursor that does not fit."""
        host = self.feed.endpoint.key
        return (
            f"decide where to go on: `rsky-pipeline cursor reset {host}` starts at the initial "
            f"position, `rsky-pipeline cursor set {host} SEQ` anywhere"
        )

    def _where(self) -> dict[str, str]:
        return {"host": self.feed.endpoint.key, "stream": self.feed.nsid.rpartition(".")[2]}


def _ended_by(frame: ErrorMessage) -> DisconnectedError:
    reason = _ERROR_FRAMES.get(frame.error, DisconnectReason.ERROR_FRAME)
    return DisconnectedError(reason, f"{frame.error[:100]}: {(frame.message or '')[:300]}")
