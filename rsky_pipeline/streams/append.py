"""Appends a batch, moves cursors and sets state fields, atomically in one script."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Literal, NamedTuple

from rsky_pipeline.streams.commands import Argument
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.limits import BATCH_FIELDS


class Entry(NamedTuple):
    """One entry to append: stream, field name and value."""

    stream: str
    field: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class CursorMove:
    """A compare-and-set of a cursor along with a batch; `expected` None means that none is stored.

    If `new` equals `expected`, the cursor stays, and the batch is still written only if the stored
    cursor equals `expected`.
    """

    key: str
    expected: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class Appended:
    """The result of an append.

    `full`: a stream is at its high-water mark, or (`full_stream` is None) the server's memory is
    nearly exhausted; nothing was written, retry later.
    `cursor_moved`: the stored cursor differs from the expected one; nothing was written. A lower
    one means that Redis lost its newest writes: the source must be read again from there.
    """

    status: Literal["appended", "full", "cursor_moved"]
    full_stream: str | None
    stored_cursor: str | None
    lengths: Mapping[str, int]
    moved_key: str | None = None  # of the first cursor that differs


# INFO memory is not called for every batch. Its result is reused for MEMORY_CHECK_SECONDS, or until
# this producer has appended MEMORY_SHARE of the free memory: other producers append too, and an
# entry takes more memory on the server than its bytes.
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
    """Append entries in order, all or none, and move the cursors with them.

    `hashes` are hash fields to set along, by key; an empty value removes the field. With a cursor,
    a retry after a lost reply appends nothing twice, because the first call has moved the cursor.
    Raises StoreUnavailableError and StoreRejectedError.
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
    # Stream and field names are sent once: repeating them would double the cost of small entries.
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
    """Return a stored cursor, or None; the text is not validated."""
    value = store.call("GET", key)
    return None if value is None else value.decode("utf-8", "replace")


def read_fields(store: Store, where: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """Return the values of (hash key, field) pairs; b"" for missing ones.

    Raises StoreUnavailableError and StoreRejectedError.
    """
    values: list[bytes] = []
    for start in range(0, len(where), BATCH_FIELDS):
        part = where[start : start + BATCH_FIELDS]
        keys = [key for key, _ in part]
        values += store.script("read_fields", keys, [field for _, field in part])
    return values
