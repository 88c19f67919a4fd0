"""Postponed entries: kept in Redis until they are due, so that the pause survives restarts.

One sorted set holds them by due time, on the server's clock. A postponed entry occupies no consumer
and does not block its stream. `Consumer.postpone` adds one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rsky_pipeline.streams.connection import Store, text_of
from rsky_pipeline.streams.limits import BATCH_ENTRIES, PAGE_WAITING
from rsky_pipeline.streams.names import WAITING_KEY
from rsky_pipeline.streams.repo_job import REPO_FIELD


@dataclass(frozen=True, slots=True)
class Waiting:
    """A postponed entry: its stream, field and value, and due time (Unix seconds)."""

    stream: str
    field: bytes
    payload: bytes
    due: float

    @property
    def member(self) -> bytes:
        """Its member in the sorted set."""
        return b"%s %s %s" % (self.stream.encode(), self.field, self.payload)


def wake(store: Store, streams: Sequence[str]) -> int:
    """Append due entries to these streams; returns their number.

    What names none of them, as only another program can have left it, goes to the first one.
    """
    total, keys = 0, [WAITING_KEY, *streams]
    while woken := int(store.script("wake", keys, [BATCH_ENTRIES, REPO_FIELD])):
        total += woken
    return total


def count_waiting(store: Store) -> int:
    """Return the number of postponed entries."""
    return int(store.call("ZCARD", WAITING_KEY))


def all_waiting(store: Store) -> Iterator[Waiting]:
    """Yield all postponed entries; one rescheduled meanwhile may come twice (ZSCAN)."""
    cursor = b"0"
    while True:
        cursor, flat = store.call("ZSCAN", WAITING_KEY, cursor, "COUNT", PAGE_WAITING)
        for member, score in zip(flat[::2], flat[1::2], strict=True):
            stream, field, payload = (*member.split(b" ", 2), b"", b"")[:3]
            found = Waiting(text_of(stream), field, payload, float(score) / 1000)
            if found.member == member:  # else it is not ours: see `wake`
                yield found
        if cursor == b"0":
            return


def remove_waiting(store: Store, entries: Sequence[Waiting]) -> int:
    """Delete postponed entries; returns the number that were still postponed."""
    removed = 0
    for start in range(0, len(entries), BATCH_ENTRIES):
        part = [entry.member for entry in entries[start : start + BATCH_ENTRIES]]
        removed += int(store.call("ZREM", WAITING_KEY, *part))
    return removed


def hurry_waiting(store: Store, entries: Sequence[Waiting]) -> int:
    """Make postponed entries due now; returns the number that were still postponed."""
    hurried = 0
    for start in range(0, len(entries), BATCH_ENTRIES):
        flat = [
            item for entry in entries[start : start + BATCH_ENTRIES] for item in (0, entry.member)
        ]
        hurried += int(store.call("ZADD", WAITING_KEY, "XX", "CH", *flat))
    return hurried
