"""How far consumers are behind, counted so that deleted entries do not spoil it."""

from dataclasses import dataclass
from typing import Any

from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.errors import StoreRejected


@dataclass(frozen=True, slots=True)
class GroupReport:
    """A consumer group's position on a stream."""

    name: str
    pending: int  # delivered, not acknowledged
    lag: int  # not yet delivered
    oldest_unacknowledged_seconds: float  # age of the oldest entry that it has to finish
    consumers: int


@dataclass(frozen=True, slots=True)
class StreamReport:
    """A stream's length and groups."""

    name: str
    length: int
    added: int  # entries ever added
    groups: tuple[GroupReport, ...]


def inspect(store: Store, stream: str) -> StreamReport:
    """Report on one stream; one that does not exist is empty."""
    try:
        facts = _facts(store.call("XINFO", "STREAM", stream))
    except StoreRejected as error:
        if "no such key" not in str(error).lower():
            raise
        return StreamReport(stream, 0, 0, ())
    length = int(facts["length"])
    seconds, microseconds = store.call("TIME")
    now_ms = int(seconds) * 1000 + int(microseconds) // 1000
    rows = [_facts(row) for row in store.call("XINFO", "GROUPS", stream)]
    groups = tuple(_group(store, stream, length, len(rows), row, now_ms) for row in rows)
    return StreamReport(stream, length, int(facts.get("entries-added", length)), groups)


def _group(
    store: Store, stream: str, length: int, groups: int, row: dict[str, Any], now_ms: int
) -> GroupReport:
    name, pending = row["name"].decode(), int(row["pending"])
    last = row["last-delivered-id"].decode()
    undelivered = store.call("XRANGE", stream, f"({last}", "+", "COUNT", 1)
    if not undelivered:
        lag = 0
    elif row.get("lag") is not None:
        lag = int(row["lag"])
    elif groups == 1:
        # Acknowledged entries are deleted, so the rest is either pending or not delivered.
        lag = max(1, length - pending)
    else:
        lag = _count_after(store, stream, last)
    oldest = undelivered[0][0] if undelivered else None
    if pending:
        oldest = store.call("XPENDING", stream, name)[1]
    age = max(0, now_ms - int(oldest.split(b"-")[0])) / 1000 if oldest else 0.0
    return GroupReport(name, pending, lag, age, int(row["consumers"]))


def _count_after(store: Store, stream: str, last: str) -> int:
    count = 0
    while page := store.call("XRANGE", stream, f"({last}", "+", "COUNT", 10_000):
        count += len(page)
        last = page[-1][0].decode()
    return count


def _facts(reply: Any) -> dict[str, Any]:
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {(name if isinstance(name, str) else name.decode()): value for name, value in pairs}
