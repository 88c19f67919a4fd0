"""Reading a stream as one consumer of a group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.errors import StoreRejected

_SLICE = 1_000  # ids of one script call; Lua's unpack has a limit of some thousands


@dataclass(frozen=True, slots=True)
class Delivery:
    """An entry that was delivered to this consumer; `fields` is None if its body is gone."""

    stream: str
    id: str
    fields: dict[bytes, bytes] | None
    deliveries: int = 1


@dataclass(frozen=True, slots=True)
class Claimed:
    """One page of taken-over entries; `deleted` are ids whose bodies no longer existed."""

    next_start: str
    deliveries: list[Delivery]
    deleted: list[str]


class GroupReader:
    """One consumer of one group on one stream. Calls raise StoreUnavailable and StoreRejected."""

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
        """Return what was delivered to this consumer before and not acknowledged, in id order."""
        return self._read(["COUNT", count], after)

    def read_new(self, count: int, block_ms: int) -> list[Delivery]:
        """Return entries that no consumer of the group was given yet, waiting for the first.

        `block_ms` 0 does not wait.
        """
        options: list[Any] = ["COUNT", count]
        if block_ms:
            options += ["BLOCK", block_ms]
        return self._read(options, ">")

    def claim_idle(self, min_idle_ms: int, start: str, count: int) -> Claimed:
        """Take over entries that were pending for long with any consumer of the group.

        Read on from `next_start` until it is `0-0`.
        """
        try:
            reply = self._store.call(
                "XAUTOCLAIM", self.stream, self.group, self.consumer, min_idle_ms, start,
                "COUNT", count,
            )  # fmt: skip
        except StoreRejected as error:
            if "NOGROUP" not in str(error):
                raise
            self.ensure()
            return Claimed("0-0", [], [])
        deleted = [entry_id.decode() for entry_id in reply[2]] if len(reply) > 2 else []
        deliveries = _deliveries(self.stream, [item for item in reply[1] if item is not None])
        counts = self._delivery_counts(deliveries)
        deliveries = [
            Delivery(item.stream, item.id, item.fields, counts.get(item.id, 1))
            for item in deliveries
        ]
        return Claimed(reply[0].decode(), deliveries, deleted)

    def acknowledge(self, ids: Sequence[str]) -> int:
        """Acknowledge entries and return how many were pending.

        They are deleted too where this is the only group; otherwise trimming removes them once
        every group has acknowledged them.
        """
        return sum(
            int(
                self._store.script(
                    "acknowledge", [self.stream], [self.group, *ids[start : start + _SLICE]]
                )
            )
            for start in range(0, len(ids), _SLICE)
        )

    def pending_count(self) -> int:
        """Return how many entries this consumer holds."""
        for consumer in self._store.call("XINFO", "CONSUMERS", self.stream, self.group):
            facts = dict(zip(consumer[::2], consumer[1::2], strict=True))
            if facts[b"name"].decode() == self.consumer:
                return int(facts[b"pending"])
        return 0

    def _read(self, options: list[Any], start: str) -> list[Delivery]:
        command = ["XREADGROUP", "GROUP", self.group, self.consumer, *options, "STREAMS"]
        try:
            reply = self._store.call(*command, self.stream, start)
        except StoreRejected as error:
            if "NOGROUP" not in str(error):
                raise
            # The stream or group was deleted under us; from the beginning nothing is missed.
            self.ensure()
            return []
        if not reply:
            return []
        pages = reply.items() if isinstance(reply, dict) else reply
        deliveries: list[Delivery] = []
        for _, page in pages:
            deliveries += _deliveries(self.stream, page)
        if start == ">" or not deliveries:
            return deliveries
        counts = self._delivery_counts(deliveries)
        return [
            Delivery(item.stream, item.id, item.fields, counts.get(item.id, 1))
            for item in deliveries
        ]

    def _delivery_counts(self, deliveries: list[Delivery]) -> dict[str, int]:
        if not deliveries:
            return {}
        reply = self._store.call(
            "XPENDING", self.stream, self.group, deliveries[0].id, deliveries[-1].id,
            len(deliveries), self.consumer,
        )  # fmt: skip
        return {row[0].decode(): int(row[3]) for row in reply}


def _deliveries(stream: str, page: Any) -> list[Delivery]:
    deliveries = []
    for entry_id, body in page:
        if isinstance(body, list):
            body = dict(zip(body[::2], body[1::2], strict=True))
        deliveries.append(Delivery(stream, entry_id.decode(), body or None))
    return deliveries
