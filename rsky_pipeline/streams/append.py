"""Appending a batch, and moving cursors and setting state with it, in one step of the server."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Literal, NamedTuple

from rsky_pipeline.streams.connection import Argument, Store
from rsky_pipeline.streams.limits import BATCH_FIELDS


class Entry(NamedTuple):
    """One entry to append: its stream, the name of its field, and the value."""

    stream: str
    field: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class CursorMove:
    """A cursor that moves with a batch; `expected` is None where none is stored yet.

    One whose `new` is what is expected (None for none) stays, but the batch is written only if it
    is really stored.
    """

    key: str
    expected: str | None
    new: str | None


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
    moved_key: str | None = None  # of the first cursor that is another than expected


# The server's memory is not asked for with every batch: the answer holds for so long, and until one
# producer has appended this share of what was left; others append too, and entries cost more there.
MEMORY_CHECK_SECONDS = 0.1
MEMORY_SHARE = 0.1
_STREAM_AND_FIELD = itemgetter(0, 1)
HashWrites = Mapping[str, Mapping[bytes, bytes]]


def append(
    store: Store,
    entries: Sequence[Entry],
    *,
    cursor: CursorMove | None = None,
    cursors: Sequence[CursorMove] = (),
    hashes: HashWrites | None = None,
    high_water_marks: Mapping[str, int] | None = None,
) -> Appended:
    """Append entries in order, all or none, and move the cursor or cursors with them.

    `hashes` are fields to set with the entries, by key; an empty value removes its field. With a
    cursor, a repeated call after a lost reply appends nothing twice. Raises StoreUnavailableError
    and StoreRejectedError.
    """
    moves = [*cursors] if cursor is None else [cursor, *cursors]
    fields = hashes or {}
    streams = list(dict.fromkeys([stream for stream, _, _ in entries]))
    marks = high_water_marks or {}
    keys = [*streams, *(move.key for move in moves), *fields]
    now = time.monotonic()
    check_memory = now >= store.memory_check_at or store.memory_left <= 0
    arguments: list[Argument] = [len(streams), len(moves), len(fields), int(check_memory)]
    for move in moves:
        arguments += (move.expected or "", move.new or "")
    arguments += [marks.get(stream, 0) for stream in streams]
    for values in fields.values():
        arguments.append(len(values))
        for item in values.items():
            arguments += item
    numbers = {stream: number for number, stream in enumerate(streams, start=1)}
    size = 0
    # A name for each entry would cost as much time as the entry.
    for (stream, field), run in groupby(entries, key=_STREAM_AND_FIELD):
        payloads = [payload for _, _, payload in run]
        size += sum(map(len, payloads))
        arguments += (numbers[stream], field, len(payloads), *payloads)
    status, detail, index, *lengths = store.script("append", keys, arguments)
    text = detail.decode("utf-8", "replace")
    if check_memory and status == b"appended":
        store.memory_check_at = now + MEMORY_CHECK_SECONDS
        store.memory_left = math.inf if index < 0 else index * MEMORY_SHARE
    store.memory_left -= size
    moved = status == b"cursor_moved"
    return Appended(
        status=status.decode(),
        full_stream=(text or None) if status == b"full" else None,
        stored_cursor=(text or None) if moved else None,
        lengths=dict(zip(streams, lengths, strict=True)),
        moved_key=moves[index - 1].key if moved else None,
    )


def read_cursor(store: Store, key: str) -> str | None:
    """Return a stored cursor, or None; it may be any text."""
    value = store.call("GET", key)
    return None if value is None else value.decode("utf-8", "replace")


def read_fields(store: Store, where: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """Return the value of each field, given with its hash; b"" for a missing one.

    Raises StoreUnavailableError and StoreRejectedError.
    """
    values: list[bytes] = []
    for start in range(0, len(where), BATCH_FIELDS):
        part = where[start : start + BATCH_FIELDS]
        keys = [key for key, _ in part]
        values += store.script("read_fields", keys, [field for _, field in part])
    return values
