"""How far consumers are behind and how full streams and server are.

Lag is counted so that deleted entries do not spoil it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rsky_pipeline.streams.connection import Store

# The server stops knowing a group's lag when entries behind its position were deleted. Counting
# reads them, so it has a limit; beyond it an upper bound is good enough.
MAX_COUNTED = 5_000


@dataclass(frozen=True, slots=True)
class GroupReport:
    """A consumer group's position on a stream.

    `lag` is exact, or an upper bound where the server cannot give it and more than MAX_COUNTED
    entries are waiting.
    """

    name: str
    pending: int  # delivered, not acknowledged
    lag: int  # not yet delivered
    oldest_unacked_age_seconds: float  # of the oldest entry that the group has to finish
    last_delivered_id: str
    consumers: int
    oldest_pending_id: str | None = None
    read: int | None = None  # entries delivered so far; None where the server does not count


@dataclass(frozen=True, slots=True)
class StreamReport:
    """A stream's length and groups; ids are None for a stream without entries."""

    name: str
    length: int
    added: int  # entries ever added; the length on servers that do not count (before Redis 7)
    first_id: str | None
    last_id: str | None  # of the newest entry, also if that was deleted
    oldest_age_seconds: float  # of the first entry, whoever has read it
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
    policy: str  # what the server does at its limit; anything but noeviction loses queue data

    @property
    def share(self) -> float | None:
        """Return the used part of the limit, from 0 to 1; None without a limit."""
        return self.used / self.limit if self.limit else None


def inspect(store: Store, stream: str) -> StreamReport:
    """Report on one stream; one that does not exist is empty.

    Ages are by the server's clock, which also made the ids. Raises StoreUnavailableError and
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
    """Report on several streams."""
    return [inspect(store, stream) for stream in streams]


def server_memory(store: Store) -> ServerMemory:
    """Ask the server. Raises StoreUnavailableError and StoreRejectedError."""
    facts = {}
    for line in store.call("INFO", "memory").decode().splitlines():
        name, _, value = line.partition(":")
        facts[name] = value
    return ServerMemory(
        int(facts.get("used_memory", 0)),
        int(facts.get("maxmemory", 0)),
        int(facts.get("total_system_memory", 0)),
        facts.get("maxmemory_policy", ""),
    )


def stream_bytes(store: Store, stream: str) -> int:
    """Return about how many bytes a stream takes, its groups included; 0 if there is none."""
    return int(store.call("MEMORY", "USAGE", stream) or 0)


def _group(row: Sequence[Any], length: int, now_ms: int) -> GroupReport:
    name, pending, oldest, last, undelivered, consumers, lag, counted, read = row
    if lag < 0:
        lag = counted if counted < MAX_COUNTED else max(counted, length - pending)
    age = _age_seconds(now_ms, [oldest, undelivered])
    return GroupReport(
        name.decode(), pending, min(lag, length), age, last.decode(), consumers,
        oldest.decode() or None, None if read < 0 else read,
    )  # fmt: skip


def _age_seconds(now_ms: int, ids: Sequence[bytes]) -> float:
    """Return the age of the oldest of these entries; an empty id is no entry."""
    times = [int(entry.partition(b"-")[0]) for entry in ids if entry]
    return max(0, now_ms - min(times)) / 1000 if times else 0.0
