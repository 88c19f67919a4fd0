"""The events of one stream, kept on disk as ready WebSocket frames.

A subscriber is given bytes straight from the file, many frames in one piece, so that serving a
stream costs next to nothing and a long run needs no memory.
"""

import os
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import trio

from rsky_pipeline.demo.simulator.websocket import binary_frame


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive frames and the index of the event after them."""

    data: bytes
    next_index: int


class EventLog:
    """An append-only log of numbered events; what is appended is seen when it is published."""

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
    def last_appended_seq(self) -> int:
        """The number of the last event, published or not; 0 if there is none."""
        return self._seqs[-1] if self._seqs else 0

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

    def read(self, index: int, max_bytes: int = 256 * 1024) -> Chunk:
        """Return published frames from `index` on: at least one if there is one."""
        if index >= self._published:
            return Chunk(b"", index)
        start = self._offsets[index]
        end = bisect_right(self._offsets, start + max_bytes, index + 1, self._published + 1) - 1
        end = max(end, index + 1)
        data = os.pread(self._file.fileno(), self._offsets[end] - start, start)
        return Chunk(data, end)

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
