"""Reading a stream as one consumer of a group."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rsky_pipeline.streams.connection import Argument, Store
from rsky_pipeline.streams.errors import StoreRejected

# An entry that was delivered more often may be what crashed its worker.
SUSPICIOUS_DELIVERIES = 2
_SLICE = 1_000  # ids of one call; Lua's unpack has a limit of some thousands


@dataclass(frozen=True, slots=True)
class Delivery:
    """An entry that was delivered to this consumer; `fields` is None if its body is gone.

    `deliveries` counts all of them, this one included, to whichever consumer of the group.
    """

    stream: str
    id: str
    fields: dict[bytes, bytes] | None
    deliveries: int = 1


@dataclass(frozen=True, slots=True)
class Claimed:
    """One page of taken-over entries.

    `deleted` are ids whose bodies no longer existed; they are acknowledged already.
    """

    next_start: str
    deliveries: list[Delivery]
    deleted: list[str]


class GroupReader:
    """One consumer of one group on one stream. Calls raise StoreUnavailable and StoreRejected.

    After a failed read, read `own_pending` from "0" again: the server may have delivered entries
    in a reply that was lost.
    """

    def __init__(self, store: Store, stream: str, group: str, consumer: str) -> None:
        self._store = store
        self.stream = stream
        self.group = group
        self.consumer = consumer

    def ensure(self) -> None:
        """Create the group at the beginning of the stream, and the stream, where missing."""
        try:
            self._store.call("XGROUP", "CREATE", self.stream, self.group, "0", "MKSTREAM")
        except StoreRejected as error:
            if "BUSYGROUP" not in str(error):
                raise

    def own_pending(self, after: str, count: int) -> list[Delivery]:
        """Return what was delivered to this consumer before and not acknowledged, in id order.

        Begin with "0" and go on after the last id until a page is empty. The server counts this
        as a delivery.
        """
        page = self._read(after, ["COUNT", count])
        counts = {row[0].decode(): int(row[3]) for row in self._pending_between(page)}
        return [replace(item, deliveries=counts.get(item.id, 1)) for item in page]

    def read_new(self, count: int, block_ms: int) -> list[Delivery]:
        """Return entries that no consumer of the group was given yet, waiting for the first.

        `block_ms` 0 does not wait. Raises ValueError for a wait that the connection would cut off.
        """
        if block_ms >= self._store.timeout_seconds * 1000:
            raise ValueError(f"a read cannot wait {block_ms} ms on this connection")
        options: list[Argument] = ["COUNT", count]
        return self._read(">", [*options, "BLOCK", block_ms] if block_ms else options)

    def claim_idle(
        self,
        min_idle_ms: int,
        start: str,
        count: int,
        held: Collection[str] = (),
        *,
        only_own: bool = False,
    ) -> Claimed:
        """Take over entries that were pending for long with any consumer of the group.

        That includes this one, for entries that it lost sight of; `held` are the ids that it still
        works on. Begin with "0-0" and read on from `next_start` until that is "0-0" again.
        `only_own` leaves those of other consumers to them.
        """
        try:
            rows = self._store.call(
                "XPENDING",
                self.stream,
                self.group,
                "IDLE",
                min_idle_ms,
                "-" if start == "0-0" else start,
                "+",
                count,
                *([self.consumer] if only_own else []),
            )
        except StoreRejected as error:
            if "NOGROUP" not in str(error):
                raise
            self.ensure()
            return Claimed("0-0", [], [])
        counts = {row[0].decode(): int(row[3]) for row in rows}
        wanted = [entry_id for entry_id in counts if entry_id not in held]
        deliveries = [
            replace(item, deliveries=counts[item.id] + 1)
            for item in self._claim(wanted, min_idle_ms)
        ]
        taken = {item.id for item in deliveries}
        deleted = self._bodiless([entry_id for entry_id in wanted if entry_id not in taken])
        next_start = f"({rows[-1][0].decode()}" if len(rows) == count else "0-0"
        return Claimed(next_start, deliveries, deleted)

    def hold(self, ids: Sequence[str], *, forgive: bool = False) -> None:
        """Keep entries from being claimed by others while work on them takes long.

        `forgive` lets their deliveries count from one again, for work that is held up by
        something else than the entries: a database that is away must not make them suspicious.
        """
        options = ("RETRYCOUNT", 1, "JUSTID") if forgive else ("JUSTID",)
        for part in _slices(ids):
            self._store.call("XCLAIM", self.stream, self.group, self.consumer, 0, *part, *options)

    def acknowledge(self, ids: Sequence[str]) -> int:
        """Acknowledge entries and return how many were pending.

        They are deleted too where this is the only group; otherwise trimming removes them once
        every group has acknowledged them.
        """
        return sum(
            int(self._store.script("acknowledge", [self.stream], [self.group, *part]))
            for part in _slices(ids)
        )

    def pending_count(self) -> int:
        """Return how many entries this consumer holds."""
        for consumer in self._store.call("XINFO", "CONSUMERS", self.stream, self.group):
            facts = dict(zip(consumer[::2], consumer[1::2], strict=True))
            if facts[b"name"].decode() == self.consumer:
                return int(facts[b"pending"])
        return 0

    def remove_idle_consumers(self, min_idle_ms: int) -> list[str]:
        """Forget other consumers that hold nothing and did nothing for long; return their names."""
        arguments: list[Argument] = [self.group, self.consumer, min_idle_ms]
        removed = self._store.script("remove_consumers", [self.stream], arguments)
        return [name.decode() for name in removed]

    def _read(self, after: str, options: Sequence[Argument]) -> list[Delivery]:
        try:
            reply = self._store.call(
                "XREADGROUP", "GROUP", self.group, self.consumer, *options,
                "STREAMS", self.stream, after,
            )  # fmt: skip
        except StoreRejected as error:
            # UNBLOCKED: the stream was deleted while we waited for it.
            if "NOGROUP" not in str(error) and "UNBLOCKED" not in str(error):
                raise
            # The stream or group was deleted under us; from the beginning nothing is missed.
            self.ensure()
            return []
        return list(_deliveries(self.stream, reply[0][1])) if reply else []

    def _claim(self, ids: Sequence[str], min_idle_ms: int) -> Iterator[Delivery]:
        for part in _slices(ids):
            # Somebody else may be quicker: the server compares the idle time once more.
            reply = self._store.call(
                "XCLAIM", self.stream, self.group, self.consumer, min_idle_ms, *part
            )
            # Redis 6.2 has nil where the body is gone, later ones leave the entry out.
            found = [item for item in reply if item is not None and item[1] is not None]
            yield from _deliveries(self.stream, found)

    def _bodiless(self, ids: Sequence[str]) -> list[str]:
        """Return and acknowledge those whose bodies are gone; the others were claimed by others."""
        gone = [
            entry_id
            for entry_id in ids
            if not self._store.call("XRANGE", self.stream, entry_id, entry_id)
        ]
        self.acknowledge(gone)
        return gone

    def _pending_between(self, page: Sequence[Delivery]) -> list[Any]:
        if not page:
            return []
        rows: list[Any] = self._store.call(
            "XPENDING", self.stream, self.group, page[0].id, page[-1].id, len(page), self.consumer
        )
        return rows


def _slices(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + _SLICE] for start in range(0, len(ids), _SLICE))


def _deliveries(stream: str, page: Sequence[Any]) -> Iterator[Delivery]:
    for entry_id, flat in page:
        if flat and len(flat) == 2:  # all of ours
            yield Delivery(stream, entry_id.decode(), {flat[0]: flat[1]})
            continue
        fields = dict(zip(flat[::2], flat[1::2], strict=True)) if flat else None
        yield Delivery(stream, entry_id.decode(), fields)
