"""What passes between a supervisor and a worker over inherited pipes.

Settings come in as one JSON document (not in arguments or the environment: they hold passwords).
Events go out as JSON lines: `started`, `ready`, `status`, `exit`. The liveness pipe carries
nothing; its end of file means that the supervisor is gone.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import trio

from rsky_pipeline.configuration.settings import Settings

MAX_SETTINGS_BYTES = 60_000  # below the capacity of a pipe, so that writing it never blocks
MAX_EVENT_BYTES = 64_000
MAX_WAITING = 64  # events; more `status` events are dropped

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class WorkerPipes:
    """File descriptors a worker inherits; None for a worker that somebody runs by hand."""

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
    """Return an event as one line of JSON; values that JSON lacks are written as text."""
    return json.dumps(event, default=str, separators=(",", ":")).encode() + b"\n"


def decode_event(line: bytes) -> Event | None:
    """Return the event of a line, or None for a line that is none."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


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
