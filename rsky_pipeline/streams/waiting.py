"""Entries that wait for their time outside of their streams: a pause that survives restarts.

They are kept in one sorted set by the time they are due, by the server's clock. A waiting entry
occupies no consumer, and its stream moves on without it. `Consumer.postpone` puts one here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.limits import BATCH_ENTRIES, PAGE_WAITING
from rsky_pipeline.streams.names import WAITING_KEY


@dataclass(frozen=True, slots=True)
class Waiting:
    """An entry that waits: where it goes back to, its field and value, and when (Unix seconds)."""

    stream: str
    field: bytes
    payload: bytes
    due: float

    @property
    def member(self) -> bytes:
        """What stands for it in the sorted set."""
        return b"%s %s %s" % (self.stream.encode(), self.field, self.payload)


def wake(store: Store, streams: Sequence[str]) -> int:
    """Put everything that is due back into these streams; return how many entries."""
    total = 0
    while woken := int(store.script("wake", [WAITING_KEY, *streams], [BATCH_ENTRIES])):
        total += woken
    return total


def count_waiting(store: Store) -> int:
    """Return how many entries wait."""
    return int(store.call("ZCARD", WAITING_KEY))


def all_waiting(store: Store) -> Iterator[Waiting]:
    """Yield everything that waits, some of it twice if it is moved meanwhile."""
    cursor = b"0"
    while True:
        cursor, flat = store.call("ZSCAN", WAITING_KEY, cursor, "COUNT", PAGE_WAITING)
        for member, score in zip(flat[::2], flat[1::2], strict=True):
            stream, field, payload = member.split(b" ", 2)
            yield Waiting(stream.decode(), field, payload, float(score) / 1000)
        if cursor == b"0":
            return


def remove_waiting(store: Store, entries: Sequence[Waiting]) -> int:
    """Forget entries that wait; return how many still did."""
    removed = 0
    for start in range(0, len(entries), BATCH_ENTRIES):
        part = [entry.member for entry in entries[start : start + BATCH_ENTRIES]]
        removed += int(store.call("ZREM", WAITING_KEY, *part))
    return removed


def hurry_waiting(store: Store, entries: Sequence[Waiting]) -> int:
    """Make entries that wait due at once; return how many still waited."""
    hurried = 0
    for start in range(0, len(entries), BATCH_ENTRIES):
        flat = [
            item for entry in entries[start : start + BATCH_ENTRIES] for item in (0, entry.member)
        ]
        hurried += int(store.call("ZADD", WAITING_KEY, "XX", "CH", *flat))
    return hurried
