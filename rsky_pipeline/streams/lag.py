"""Measures consumer lag, stream lengths and the server's memory; deleted entries do not count."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rsky_pipeline.streams.connection import Store, text_of

# Redis reports no lag for a group after entries beyond its position were deleted. They are then
# counted by reading them, up to a limit; above it, an upper bound suffices.
MAX_COUNTED = 5_000


@dataclass(frozen=True, slots=True)
class GroupReport:
    """A consumer group's position on a stream.

    `lag` is exact, or an upper bound if the server does not report it and more than MAX_COUNTED
    entries are unread.
    """

    name: str
    pending: int  # delivered, not acknowledged
    lag: int  # not yet delivered
    oldest_unacked_age_seconds: float  # of the oldest entry not acknowledged by the group
    last_delivered_id: str
    consumers: int
    oldest_pending_id: str | None = None
    read: int | None = None  # entries delivered so far; None if the server does not count


@dataclass(frozen=True, slots=True)
class StreamReport:
    """Length and groups of a stream; ids are None for an empty stream."""

    name: str
    length: int
    added: int  # entries ever added; the length on servers that do not count (before Redis 7)
    first_id: str | None
    last_id: str | None  # of the newest entry ever added, even if deleted
    oldest_age_seconds: float  # of the first entry, read or not
    groups: tuple[GroupReport, ...]
    counts_added: bool = True  # whether the server counted `added`

    def group(self, name: str) -> GroupReport | None:
        """Return the report of one group, None if the stream has no such group."""
        return next((group for group in self.groups if group.name == name), None)


@dataclass(frozen=True, slots=True)
class ServerMemory:
    """Bytes used by the server, its limit (0: none), and the machine's memory (0: unknown)."""

    used: int
    limit: int
    machine: int
    policy: str  # maxmemory-policy; anything but noeviction loses queue data

    @property
    def share(self) -> float | None:
        """Return the used part of the limit, from 0 to 1; None without a limit."""
        return self.used / self.limit if self.limit else None


def inspect(store: Store, stream: str) -> StreamReport:
    """Measure one stream; a missing stream counts as empty.

    Ages use the server's clock, which also generated the ids. Raises StoreUnavailableError and
    StoreRejectedError.
    """
    reply = store.script("inspect", [stream], [MAX_COUNTED])
    if not reply:
        return StreamReport(stream, 0, 0, None, None, 0.0, ())
    now_ms, length, added, first, last, *groups = reply
    return StreamReport(
        stream,
        length,
        length if added < 0 else added,
        first.decode() or None,
        last.decode(),
        _age_seconds(now_ms, [first]),
        tuple(_group(row, length, now_ms) for row in groups),
        counts_added=added >= 0,
    )


def collect(store: Store, streams: Sequence[str]) -> list[StreamReport]:
    """Measure several streams; see `inspect`."""
    return [inspect(store, stream) for stream in streams]


def server_memory(store: Store) -> ServerMemory:
    """Read INFO memory. Raises StoreUnavailableError and StoreRejectedError."""
    facts = {}
    for line in text_of(store.call("INFO", "memory")).splitlines():
        name, _, value = line.partition(":")
        facts[name] = value
    return ServerMemory(
        int(facts.get("used_memory", 0)),
        int(facts.get("maxmemory", 0)),
        int(facts.get("total_system_memory", 0)),
        facts.get("maxmemory_policy", ""),
    )


def stream_bytes(store: Store, stream: str) -> int:
    """Estimate the memory of a stream and its groups in bytes; 0 if it does not exist."""
    return int(store.call("MEMORY", "USAGE", stream) or 0)


def _group(row: Sequence[Any], length: int, now_ms: int) -> GroupReport:
    name, pending, oldest, last, undelivered, consumers, lag, counted, read = row
    if lag < 0:
        lag = counted if counted < MAX_COUNTED else max(counted, length - pending)
    age = _age_seconds(now_ms, [oldest, undelivered])
    return GroupReport(
        text_of(name), pending, min(lag, length), age, last.decode(), consumers,
        oldest.decode() or None, None if read < 0 else read,
    )  # fmt: skip


def _age_seconds(now_ms: int, ids: Sequence[bytes]) -> float:
    """Return the age of the oldest of these entries; empty ids are ignored."""
    times = [int(entry.partition(b"-")[0]) for entry in ids if entry]
    return max(0, now_ms - min(times)) / 1000 if times else 0.0
