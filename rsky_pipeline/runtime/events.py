"""The sending end of a worker's event pipe: never blocks the worker, never grows."""

import math
from typing import Any

import trio

from rsky_pipeline.runtime.channel import encode_event

MAX_WAITING = 64


class EventSender:
    """Sends events to the supervisor in order; drops `status` events while it does not read."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._send, self._receive = trio.open_memory_channel[bytes](math.inf)

    def send(self, kind: str, **details: Any) -> None:
        """Queue an event."""
        waiting = self._send.statistics().current_buffer_used
        if self._descriptor is None or (kind == "status" and waiting >= MAX_WAITING):
            return
        self._send.send_nowait(encode_event({"event": kind, **details}))

    def finish(self) -> None:
        """Let `run` end when everything queued is written."""
        self._send.close()

    async def run(self) -> None:
        """Write queued events until `finish`; a supervisor that is gone is no error here."""
        if self._descriptor is None:
            return
        async with trio.lowlevel.FdStream(self._descriptor) as pipe, self._receive:
            async for line in self._receive:
                try:
                    await pipe.send_all(line)
                except trio.BrokenResourceError:
                    self._descriptor = None
                    return
