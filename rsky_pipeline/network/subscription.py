"""Subscribing to an event stream of a relay or labeler over a WebSocket.

https://atproto.com/specs/event-stream. Every failure is a `DisconnectedError` with
a reason out of a fixed list, for the counters, and a detail for people.
"""

import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

import trio
from trio_websocket import CloseReason, ConnectionClosed, ConnectionRejected
from wsproto.utilities import ProtocolError

from rsky_pipeline import __version__
from rsky_pipeline.configuration.endpoints import Endpoint
from rsky_pipeline.configuration.proxy import Proxy
from rsky_pipeline.network.connect import Dialer, secured
from rsky_pipeline.network.frame_socket import FrameSocket
from rsky_pipeline.network.http import read_pause
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.errors import described, printable

_boundary = Boundary()
_MAX_DETAIL = 1_000
_LATE_SECONDS = 0.1
_PROTOCOL_CODES = frozenset({1002, 1003, 1007})  # RFC 6455; sent by either side


class DisconnectReason(StrEnum):
    """Why a connection ended or did not come about; the values are metric labels."""

    CONNECT_FAILED = "connect_failed"
    CONNECT_TIMEOUT = "connect_timeout"
    REJECTED = "rejected"  # an HTTP status other than 101 and 429
    RATE_LIMITED = "rate_limited"
    CLOSED = "closed"  # the peer sent a close frame
    LOST = "lost"  # the connection broke
    IDLE = "idle"  # nothing came for too long
    PING_TIMEOUT = "ping_timeout"
    PROTOCOL_ERROR = "protocol_error"
    ERROR_FRAME = "error_frame"
    CONSUMER_TOO_SLOW = "consumer_too_slow"
    FUTURE_CURSOR = "future_cursor"
    PRESSURE = "pressure"  # we closed because the streams are full
    CURSOR_MOVED = "cursor_moved"  # we closed because the store holds another cursor
    STOPPING = "stopping"
    INTERNAL_ERROR = "internal_error"  # an exception that nobody declared
    CLOCK = "clock"  # we closed because our clock is behind
    STORE = "store"  # the cursor could not be read from the store


class DisconnectedError(Exception):
    """A subscription ended, or could not begin.

    `retry_after` (seconds) is the peer's, if it sent one.
    """

    def __init__(
        self, reason: DisconnectReason, detail: str, retry_after: float | None = None
    ) -> None:
        self.reason = reason
        self.detail = printable(detail[:_MAX_DETAIL])  # most of it may be the peer's
        super().__init__(f"{reason}: {self.detail}")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The time limits of a subscription, in seconds, and its memory."""

    connect: float = 15.0  # name, TCP, TLS and HTTP upgrade together
    close: float = 3.0
    idle: float | None = 60.0  # without a message; None where long silence is normal
    ping_every: float = 20.0
    pong_within: float = 20.0
    max_queued_bytes: int = 4 * 1024 * 1024


DEFAULT_TIMEOUTS = Timeouts()


class Subscription:
    """An open subscription; `receive` until it raises `DisconnectedError`."""

    def __init__(self, host: str, socket: FrameSocket, timeouts: Timeouts) -> None:
        self._host = host
        self._socket = socket
        self._timeouts = timeouts
        self.idle = timeouts.idle  # as in `Timeouts`; may change while the connection stands
        self._ended: DisconnectedError | None = None
        self._reader_ended = False

    @property
    def text_messages(self) -> int:
        """Text messages so far; they are not part of the protocol and are ignored."""
        return self._socket.text_messages

    @property
    def oversize_messages(self) -> int:
        """Messages so far that were skipped because of their size."""
        return self._socket.oversize_messages

    async def receive(self) -> list[bytes]:
        """Return the messages that have come, at least one, in order.

        Raises DisconnectedError once the connection has ended and everything received was taken.
        """
        await trio.lowlevel.checkpoint()
        while not (messages := self._socket.take()):
            if self._ended is not None:
                raise self._ended
            self._socket.arrived = trio.Event()
            with trio.move_on_after(self.idle or float("inf")) as waiting:
                await self._socket.arrived.wait()
            if waiting.cancelled_caught and not _fired_late(waiting):
                detail = f"nothing was received for {self.idle:.0f} s"
                self._end(DisconnectReason.IDLE, detail)
        return messages

    async def run_reader(self) -> None:
        """Read from the socket until it ends, and keep the reason."""
        socket = self._socket
        try:
            await socket.read()
        except ConnectionRejected as error:
            self._ended = self._ended or _rejected(error)
        except (ProtocolError, ConnectionClosed, trio.ClosedResourceError) as error:
            self._end(DisconnectReason.PROTOCOL_ERROR, described(error))
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            # A peer's bytes may reach any corner of the library; they cost this connection only.
            _boundary.caught(error, "websocket", host=self._host)
            self._end(DisconnectReason.PROTOCOL_ERROR, described(error))
        finally:
            self._reader_ended = True
            closed = socket.closed
            if closed is None:
                self._end(DisconnectReason.PROTOCOL_ERROR, "the peer does not speak WebSocket")
            elif closed.code == 1006:
                self._end(DisconnectReason.LOST, "the connection broke")
            else:
                self._end_closed(closed)

    def _end_closed(self, closed: CloseReason) -> None:
        broken = closed.code in _PROTOCOL_CODES
        reason = DisconnectReason.PROTOCOL_ERROR if broken else DisconnectReason.CLOSED
        words = f", {closed.reason[:200]}" if closed.reason else ""
        self._end(reason, f"closed with code {closed.code}{words}")

    async def run_heartbeat(self) -> None:
        """Ping the peer now and then; one that sends neither a pong nor a message is dead.

        So is one that keeps the connection open, and goes on sending, behind a close frame or a
        breach of the protocol. The library waits for it (RFC 6455, 7.1.1), whatever it takes.
        """
        socket, timeouts = self._socket, self._timeouts
        while self._ended is None:
            with trio.move_on_after(timeouts.ping_every):
                await socket.closing.wait()
            if socket.closing.is_set():
                await trio.sleep(timeouts.close)
                self._end_closed(socket.closed_with)
                return
            messages, stalls = socket.messages, socket.stalls
            try:
                with trio.move_on_after(timeouts.pong_within) as waiting:
                    await socket.ping()
            except ConnectionClosed:
                if socket.closing.is_set():
                    continue
                return
            # The pong may be behind messages that we did not read in time.
            unread = socket.stalled or (socket.messages, socket.stalls) != (messages, stalls)
            if waiting.cancelled_caught and not unread and not _fired_late(waiting):
                detail = f"no answer to a ping within {timeouts.pong_within:g} s"
                self._end(DisconnectReason.PING_TIMEOUT, detail)

    async def opened(self) -> None:
        """Wait for the end of the handshake. Raises DisconnectedError if it failed."""
        await self._socket.opened()
        if self._ended is not None:
            raise self._ended

    async def close(self) -> None:
        """Send a close frame while the connection stands.

        Messages that were not taken are dropped.
        """
        self._socket.discard()
        if self._reader_ended:
            return
        with trio.move_on_after(self._timeouts.close):
            await self._socket.aclose()

    def _end(self, reason: DisconnectReason, detail: str) -> None:
        self._ended = self._ended or DisconnectedError(reason, detail)
        self._socket.end()


@asynccontextmanager
async def subscribe(
    endpoint: Endpoint,
    nsid: str,
    cursor: int | None,
    *,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ssl_context: ssl.SSLContext | None = None,
    proxy: Proxy | None = None,
) -> AsyncIterator[Subscription]:
    """Open a subscription; `cursor` None means from now on, 0 the oldest event.

    Raises DisconnectedError. An error of the body is raised as it is, not in a group.
    """
    query = "" if cursor is None else f"?cursor={cursor}"
    deadline = trio.current_time() + timeouts.connect
    stream = await _open_stream(endpoint, deadline, ssl_context, proxy)
    socket = FrameSocket(
        stream,
        host=endpoint.authority,
        path=f"/xrpc/{nsid}{query}",
        headers=[(b"User-Agent", f"rsky-pipeline/{__version__}".encode())],
        max_queued=timeouts.max_queued_bytes,
    )
    subscription = Subscription(endpoint.key, socket, timeouts)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.run_reader)
            try:
                with trio.move_on_at(deadline) as opening:
                    await subscription.opened()
                if opening.cancelled_caught:
                    raise DisconnectedError(
                        DisconnectReason.CONNECT_TIMEOUT,
                        f"{endpoint} did not answer within {timeouts.connect:g} s",
                    )
                nursery.start_soon(subscription.run_heartbeat)
                yield subscription
            finally:
                await subscription.close()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _only_error(group) from None
    finally:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)


async def _open_stream(
    endpoint: Endpoint, deadline: float, ssl_context: ssl.SSLContext | None, proxy: Proxy | None
) -> trio.abc.Stream:
    """Connect, with TLS where the endpoint has it. Raises DisconnectedError."""
    try:
        with trio.move_on_at(deadline):
            dialer = Dialer(guarded=False, proxy=proxy)
            stream = await dialer.open(endpoint.host, endpoint.port)
            if not endpoint.secure:
                return stream
            context = ssl_context or ssl.create_default_context()
            return await secured(stream, endpoint.host, context)
    except (OSError, ValueError, trio.BrokenResourceError) as error:  # names that are none, too
        cause = error.__cause__ or error
        raise DisconnectedError(
            DisconnectReason.CONNECT_FAILED, f"cannot connect to {endpoint}: {cause}"
        ) from error
    raise DisconnectedError(
        DisconnectReason.CONNECT_TIMEOUT, f"{endpoint} could not be reached in time"
    )


def _fired_late(scope: trio.CancelScope) -> bool:
    """Return whether a time limit was noticed well after its time.

    Then this process was held up, and whatever the peer sent meanwhile is still unread: nothing
    follows for the peer.
    """
    return trio.current_time() - scope.deadline > _LATE_SECONDS


def _rejected(error: ConnectionRejected) -> DisconnectedError:
    headers = {
        name.lower().decode("latin-1"): value.decode("latin-1") for name, value in error.headers
    }
    detail = f"HTTP status {error.status_code} instead of a WebSocket"
    location = headers.get("location")
    if location is not None:
        detail += f"; it points to {location[:200]!r}: configure that host if it is right"
    limited = error.status_code == 429
    reason = DisconnectReason.RATE_LIMITED if limited else DisconnectReason.REJECTED
    return DisconnectedError(reason, detail, read_pause(error.status_code, headers, time.time()))


def _only_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that a nursery wrapped, or the group if there are several."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
