"""Serving an event log to a subscriber: cursors, replay, live, and consumers that are too slow.

Source: the event stream and sync specifications, with the choices of the production relay: events
after the cursor, `OutdatedCursor` sent before the oldest event, `FutureCursor` ends the stream.
"""

import os
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import trio

from rsky_pipeline.atproto.frame import encode_error_frame, encode_frame
from rsky_pipeline.demo.simulator.http import (
    POLICY_VIOLATION,
    Request,
    SimulatedResponse,
    Upgrade,
    WebSocket,
    binary_frame,
    xrpc_error,
)


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Consecutive frames and the index of the event after them."""

    data: bytes
    next_index: int


class EventLog:
    """An append-only log of numbered events; subscribers get appended events once published."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by close()
        self._seqs = array("Q")
        self._offsets = array("Q", [0])
        self._unwritten: list[bytes] = []
        self._published = 0
        self._first = 0
        self._grown = trio.Event()

    @property
    def published(self) -> int:
        """How many events subscribers may have, those that were expired included."""
        return self._published

    @property
    def appended(self) -> int:
        """How many events there are, published or not."""
        return len(self._seqs)

    @property
    def newest_seq(self) -> int:
        """The number of the last published event, 0 if there is none."""
        return self._seqs[self._published - 1] if self._published else 0

    @property
    def oldest_index(self) -> int:
        """The index of the oldest event that is still served."""
        return self._first

    def append(self, seq: int, *frames: bytes) -> None:
        """Add the event `seq`, larger than all before; it is not seen yet.

        It is one frame, unless a relay is to send a frame again.
        """
        if self._seqs and seq <= self._seqs[-1]:
            raise ValueError(f"event {seq} does not follow event {self._seqs[-1]}")
        framed = b"".join(map(binary_frame, frames))
        self._unwritten.append(framed)
        self._seqs.append(seq)
        self._offsets.append(self._offsets[-1] + len(framed))
        if len(self._unwritten) >= 1_000:
            self._write()

    def publish(self, count: int | None = None) -> None:
        """Let subscribers see `count` more events, or all that were appended."""
        self._write()
        limit = len(self._seqs)
        self._published = limit if count is None else min(limit, self._published + count)
        self._grown.set()
        self._grown = trio.Event()

    def expire(self, keep: int) -> None:
        """Stop serving all but the `keep` newest published events, as a relay's window does."""
        self._first = max(self._first, self._published - keep)

    def seq_at(self, index: int) -> int:
        """Return the number of the event at an index."""
        return self._seqs[index]

    def index_after(self, seq: int) -> int:
        """Return the index of the first event with a number above `seq`."""
        return bisect_right(self._seqs, seq, 0, self._published)

    def read(self, index: int, max_bytes: int = 256 * 1024) -> LogChunk:
        """Return published frames from `index` on: at least one if there is one."""
        if index >= self._published:
            return LogChunk(b"", index)
        start = self._offsets[index]
        end = bisect_right(self._offsets, start + max_bytes, index + 1, self._published + 1) - 1
        end = max(end, index + 1)
        data = os.pread(self._file.fileno(), self._offsets[end] - start, start)
        return LogChunk(data, end)

    def frames(self) -> Iterable[bytes]:
        """Yield the published frames without their WebSocket headers, oldest first."""
        for index in range(self._published):
            start, end = self._offsets[index], self._offsets[index + 1]
            data = os.pread(self._file.fileno(), end - start, start)
            while data:
                header = 2 if data[1] < 126 else 4 if data[1] == 126 else 10
                size = data[1] if header == 2 else int.from_bytes(data[2:header], "big")
                yield data[header : header + size]
                data = data[header + size :]

    async def wait_for_growth(self, index: int) -> None:
        """Return when an event at `index` is published."""
        while self._published <= index:
            await self._grown.wait()

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()

    def _write(self) -> None:
        if self._unwritten:
            data = memoryview(b"".join(self._unwritten))
            self._unwritten.clear()
            while data:
                data = data[self._file.write(data) :]


_FAREWELL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class StreamRules:
    """How a stream treats its subscribers."""

    buffer_events: int = 16_384  # a live subscriber further behind is cut off; 0 never does
    keep_events: int = 0  # size of the replay window; 0 keeps everything


class Subscribers:
    """Counts and cuts the connections of a stream, for tests of reconnecting."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self.accepted = 0
        self.too_slow = 0
        self._silent_until = self._fell_silent = 0.0

    def __len__(self) -> int:
        return len(self._scopes)

    def fall_silent(self, seconds: float) -> None:
        """Send nothing for a while on the sockets that are open; pings are answered.

        A subscriber that comes anew is served.
        """
        self._fell_silent = trio.current_time()
        self._silent_until = self._fell_silent + seconds

    def silent_seconds(self, since: float) -> float:
        """Return for how long a socket that was opened at a time is still silent."""
        left = self._silent_until - trio.current_time()
        return left if since <= self._fell_silent and left > 0 else 0.0

    def disconnect_all(self) -> int:
        """Cut every subscriber off without a word; returns how many there were."""
        count = len(self._scopes)
        for scope in self._scopes:
            scope.cancel()
        return count


def subscribe(
    request: Request, log: EventLog, rules: StreamRules, subscribers: Subscribers
) -> SimulatedResponse | Upgrade:
    """Answer a subscription request."""
    if not request.wants_websocket:
        return xrpc_error(426, "UpgradeRequired", "this endpoint speaks WebSocket only")
    text = request.query.get("cursor")
    if text is not None and not (text.isascii() and text.isdigit()):
        return xrpc_error(400, "InvalidRequest", "cursor is not a number")
    cursor = None if text is None else int(text)
    return Upgrade(partial(_serve, log=log, rules=rules, cursor=cursor, subscribers=subscribers))


async def _serve(
    socket: WebSocket,
    *,
    log: EventLog,
    rules: StreamRules,
    cursor: int | None,
    subscribers: Subscribers,
) -> None:
    with trio.CancelScope() as scope:
        subscribers._scopes.add(scope)
        subscribers.accepted += 1
        try:
            async with trio.open_nursery() as nursery:
                sender = _Sender(socket, log, rules, subscribers, scope)
                nursery.start_soon(sender.run, cursor)
                nursery.start_soon(sender.watch)
                await socket.read_until_closed()
                nursery.cancel_scope.cancel()
        finally:
            subscribers._scopes.discard(scope)


class _Sender:
    def __init__(
        self,
        socket: WebSocket,
        log: EventLog,
        rules: StreamRules,
        subscribers: Subscribers,
        scope: trio.CancelScope,
    ) -> None:
        self._socket = socket
        self._log = log
        self._rules = rules
        self._subscribers = subscribers
        self._scope = scope
        self._index = 0
        self._live = False
        self._too_slow = False
        self._since = trio.current_time()

    async def run(self, cursor: int | None) -> None:
        """Send from the cursor on, for as long as the subscriber keeps up."""
        try:
            if await self._start(cursor):
                await self._send_events()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the subscriber left
        self._scope.cancel()

    async def watch(self) -> None:
        """Notice that a live subscriber falls behind; give it a moment to read the reason."""
        if not self._rules.buffer_events:
            return
        while True:
            await self._log.wait_for_growth(self._log.published)
            behind = self._log.published - self._index
            if self._live and behind > self._rules.buffer_events:
                self._too_slow = True
                self._subscribers.too_slow += 1
                self._scope.deadline = trio.current_time() + _FAREWELL_SECONDS
                return

    async def _start(self, cursor: int | None) -> bool:
        if cursor is None:
            self._index, self._live = self._log.published, True
            return True
        if cursor > self._log.newest_seq:
            await self._refuse("FutureCursor", "the cursor is ahead of this stream")
            return False
        self._index = self._log.index_after(cursor)
        if self._index < self._log.oldest_index:
            self._index = self._log.oldest_index
            if cursor > 0:
                note = {"name": "OutdatedCursor", "message": "events before this are gone"}
                await self._socket.send_frames(binary_frame(encode_frame("#info", note)))
        return True

    async def _send_events(self) -> None:
        while not self._too_slow:
            silent = self._subscribers.silent_seconds(self._since)
            if silent:
                await trio.sleep(silent)
                continue
            chunk = self._log.read(self._index)
            if chunk.data:
                await self._socket.send_frames(chunk.data)
                self._index = chunk.next_index
            else:
                self._live = True
                await self._log.wait_for_growth(self._index)
        await self._refuse("ConsumerTooSlow", "the subscriber does not keep up with the stream")

    async def _refuse(self, error: str, message: str) -> None:
        frame = encode_error_frame(error, message)
        await self._socket.send_frames(binary_frame(frame))
        await self._socket.close(POLICY_VIOLATION, error)
