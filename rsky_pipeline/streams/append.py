"""Appending a batch and moving its cursor in one step of the server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from rsky_pipeline.streams.connection import Argument, Store


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry to append: its stream, the name of its field, and the value."""

    stream: str
    field: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class CursorMove:
    """A cursor that moves with a batch; `expected` is None where none is stored yet."""

    key: str
    expected: str | None
    new: str


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of a batch.

    `full`: a stream is at its high-water mark, or (`full_stream` is None) the server's memory is
    nearly used up; nothing was written, try again later.
    `cursor_moved`: another cursor is stored than expected; nothing was written. A lower one means
    that Redis lost its newest data, and that the source must be read again from there.
    """

    status: Literal["appended", "full", "cursor_moved"]
    full_stream: str | None
    stored_cursor: str | None
    lengths: Mapping[str, int]


def append(
    store: Store,
    entries: Sequence[Entry],
    *,
    cursor: CursorMove | None = None,
    high_water_marks: Mapping[str, int] | None = None,
) -> Appended:
    """Append entries in order, all or none, and move the cursor with them.

    With a cursor, a repeated call after a lost reply appends nothing twice. Raises
    StoreUnavailable and StoreRejected.
    """
    streams = list(dict.fromkeys(entry.stream for entry in entries))
    marks = high_water_marks or {}
    keys, arguments = list(streams), _cursor_arguments(len(streams), cursor)
    if cursor is not None:
        keys.append(cursor.key)
    arguments += [marks.get(stream, 0) for stream in streams]
    numbers = {stream: number for number, stream in enumerate(streams, start=1)}
    # A name for each entry would cost as much time as the entry.
    for (stream, field), run in groupby(entries, key=lambda entry: (entry.stream, entry.field)):
        payloads = [entry.payload for entry in run]
        arguments += (numbers[stream], field, len(payloads), *payloads)
    status, detail, *lengths = store.script("append", keys, arguments)
    text = detail.decode()
    return Appended(
        status=status.decode(),
        full_stream=(text or None) if status == b"full" else None,
        stored_cursor=(text or None) if status == b"cursor_moved" else None,
        lengths=dict(zip(streams, lengths, strict=True)),
    )


def _cursor_arguments(streams: int, cursor: CursorMove | None) -> list[Argument]:
    if cursor is None:
        return [streams, 0, "", ""]
    return [streams, 1, cursor.expected or "", cursor.new]


def read_cursor(store: Store, key: str) -> str | None:
    """Return a stored cursor, or None."""
    value = store.call("GET", key)
    return None if value is None else value.decode()
