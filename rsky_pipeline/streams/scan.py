"""Reads entries in bounded pages, and removes chosen ones while consumers run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import orjson

from rsky_pipeline.streams.bsync import OPERATION_FIELD
from rsky_pipeline.streams.connection import Store, text_of
from rsky_pipeline.streams.event import EVENT_FIELD, LABELS_FIELD
from rsky_pipeline.streams.limits import BATCH_ENTRIES, PAGE_ENTRIES
from rsky_pipeline.streams.repo_job import REPO_FIELD

UNREADABLE = "unreadable"
Mode = Literal["look", "finished", "all"]
_EVENTS = ("create", "update", "delete", "repo", "account", "identity", "label")
ENTRY_TYPES = (*_EVENTS, "labels", "job", "operation", UNREADABLE)


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry of a stream."""

    id: str
    fields: Mapping[bytes, bytes]

    @property
    def size(self) -> int:
        """Bytes of its names and values."""
        return sum(len(name) + len(value) for name, value in self.fields.items())


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An entry not yet delivered to a group (`unread`) or not acknowledged by it (`pending`)."""

    id: str
    group: str  # empty if the stream has no groups
    state: str


@dataclass(frozen=True, slots=True)
class Discarded:
    """The result of `discard`: the number of removed entries, and the unfinished ones.

    Unfinished entries are removed only by the mode `all`.
    """

    removed: int
    unfinished: tuple[Unfinished, ...]


@dataclass(frozen=True, slots=True)
class Nature:
    """The type of an entry, one of ENTRY_TYPES, and the collection of a record event.

    `job` is a repo job, `labels` a frame of labels, `operation` one of bsync. `collection` is
    otherwise empty.
    """

    kind: str
    collection: str = ""


def pages(
    store: Store,
    stream: str,
    *,
    after: str | None = None,
    until: str = "+",
    count: int = PAGE_ENTRIES,
) -> Iterator[list[StoredEntry]]:
    """Yield pages of entries, oldest first; `until` is inclusive, or exclusive after a `(`.

    Raises StoreUnavailableError and StoreRejectedError.
    """
    start = "-" if after is None else f"({after}"
    while page := _entries(store.call("XRANGE", stream, start, until, "COUNT", count)):
        yield page
        start = f"({page[-1].id}"


def newest(
    store: Store, stream: str, count: int, *, before: str | None = None
) -> list[StoredEntry]:
    """Return the newest entries (older than `before`, if given), newest first."""
    end = "+" if before is None else f"({before}"
    return _entries(store.call("XREVRANGE", stream, end, "-", "COUNT", count))


def oldest(store: Store, stream: str, count: int) -> list[StoredEntry]:
    """Return the oldest entries, oldest first."""
    return _entries(store.call("XRANGE", stream, "-", "+", "COUNT", count))


def nature(fields: Mapping[bytes, bytes]) -> Nature:
    """Classify an entry by its fields, without validating the rest."""
    if LABELS_FIELD in fields:
        return Nature("labels")
    if REPO_FIELD in fields:
        return Nature("job")
    if OPERATION_FIELD in fields:
        return Nature("operation")
    try:
        body = orjson.loads(fields.get(EVENT_FIELD, b""))
    except orjson.JSONDecodeError:
        return Nature(UNREADABLE)
    kind = body.get("type") if isinstance(body, dict) else None
    if not isinstance(kind, str) or kind not in _EVENTS:
        return Nature(UNREADABLE)
    collection = body.get("collection")
    return Nature(kind, collection if isinstance(collection, str) else "")


def milliseconds(entry_id: str) -> int:
    """Return the Unix time of an entry in ms, by the server's clock."""
    return int(entry_id.partition("-")[0])


def moment(entry_id: str) -> str | None:
    """Return the UTC time of an entry as text; None for an empty id."""
    if not entry_id:
        return None
    when = datetime.fromtimestamp(milliseconds(entry_id) / 1000, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def discard(store: Store, stream: str, ids: Sequence[str], mode: Mode) -> Discarded:
    """Remove entries atomically, at most BATCH_ENTRIES per call.

    Mode `look` removes nothing, `finished` only entries that every group has acknowledged, `all`
    acknowledges and removes all of them. Safe to repeat. Raises StoreUnavailableError and
    StoreRejectedError, and ValueError for too many ids.
    """
    if len(ids) > BATCH_ENTRIES:
        raise ValueError(f"{len(ids)} entries at once, at most {BATCH_ENTRIES}")
    removed, *rows = store.script("discard", [stream], [mode, *ids])
    found = (Unfinished(*map(text_of, row)) for row in rows)
    return Discarded(int(removed), tuple(found))


def _entries(reply: list[tuple[bytes, list[bytes]]]) -> list[StoredEntry]:
    return [
        StoredEntry(entry_id.decode(), dict(zip(flat[::2], flat[1::2], strict=True)))
        for entry_id, flat in reply
    ]
