"""The protocol between a supervisor and a worker over inherited pipes.

The worker reads its settings as one JSON document (they hold passwords, so they are not passed as
arguments or environment), and writes events as JSON lines: `started`, `ready`, `status`, `exit`.
The liveness pipe carries lines to the worker (`log_level debug`); its end of file means that the
supervisor is gone.
"""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import trio

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime.errors import described

MAX_SETTINGS_BYTES = 60_000  # below the capacity of a pipe, so that writing it never blocks
MAX_EVENT_BYTES = 64_000
MAX_WAITING = 64  # events; more `status` events are dropped
BLAMELESS = "RSKY_WORKER_BLAMELESS"  # variable of a worker: "1" as in `WorkerContext.blameless`

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class WorkerPipes:
    """File descriptors that a worker inherits; None if it runs without a supervisor."""

    events: int | None = None
    liveness: int | None = None


def encode_settings(settings: Settings) -> bytes:
    """Return the settings as JSON. Raises ValueError when they are too large for a pipe."""
    values = {item.name: getattr(settings, item.name) for item in fields(settings)}
    encoded = json.dumps(values, default=str).encode()
    if len(encoded) > MAX_SETTINGS_BYTES:
        raise ValueError(f"the settings take {len(encoded)} bytes; at most {MAX_SETTINGS_BYTES}")
    return encoded


def decode_settings(encoded: bytes) -> Settings:
    """Return the settings that `encode_settings` wrote."""
    values: dict[str, Any] = json.loads(encoded)
    for item in fields(Settings):
        value = values.get(item.name)
        if isinstance(value, list):
            values[item.name] = tuple(value)
        elif value is not None and "Path" in str(item.type):
            values[item.name] = Path(value)
    return Settings(**values)


def read_settings(descriptor: int) -> Settings:
    """Read the settings from an inherited pipe, and close it."""
    with os.fdopen(descriptor, "rb") as pipe:
        return decode_settings(pipe.read(MAX_SETTINGS_BYTES + 1))


def encode_event(event: Mapping[str, Any]) -> bytes:
    """Return an event as one line of JSON; unsupported values are written with `str`."""
    return json.dumps(event, default=str, separators=(",", ":")).encode() + b"\n"


def decode_event(line: bytes) -> Event | None:
    """Return the event of a line, or None if the line is not an event."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def report_end(pipes: WorkerPipes, error: BaseException) -> None:
    """Tell the supervisor why this process ends before its role has begun."""
    if pipes.events is not None:
        with suppress(OSError):
            os.write(pipes.events, encode_event({"event": "exit", "reason": described(error)}))


class EventSender:
    """Sends events in order; drops `status` events while the supervisor does not read."""

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
        """Make `run` return once all queued events are written."""
        self._send.close()

    async def run(self) -> None:
        """Write queued events until `finish`; a broken pipe (supervisor gone) is ignored."""
        if self._descriptor is None:
            return
        async with trio.lowlevel.FdStream(self._descriptor) as pipe, self._receive:
            async for line in self._receive:
                try:
                    await pipe.send_all(line)
                except trio.BrokenResourceError:
                    self._descriptor = None
                    return
