"""A consumer bound to a connection, whose commands a test calls one by one."""

from collections.abc import Collection, Sequence
from typing import Any

from rsky_pipeline.streams.commands import Argument
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.consumer import Claimed, Consumer, Delivery, Pending, ensure_group


class GroupReader:
    """The commands of one consumer; which entries it holds is up to the test."""

    def __init__(self, store: Store, stream: str, group: str, consumer: str) -> None:
        self._store, self.stream, self.group, self.consumer = store, stream, group, consumer
        self._own = Consumer(stream, group, consumer, reclaim_idle_ms=60_000)

    def ensure(self) -> None:
        ensure_group(self._store, self.stream, self.group)

    def read_new(self, count: int, block_ms: int) -> list[Delivery]:
        return self._own._read_new(self._store, count, block_ms)

    def pending(self, start: str, count: int, *, own: bool = False) -> list[Pending]:
        return self._own._pending(self._store, start, count, own=own)

    def claim(self, rows: Sequence[Pending], min_idle_ms: int) -> Claimed:
        return self._own._claim(self._store, rows, min_idle_ms)

    def claim_idle(
        self, min_idle_ms: int, start: str, count: int, held: Collection[str] = ()
    ) -> Claimed:
        self._own._held = set(held)
        claimed = self._own._claim_idle(self._store, min_idle_ms, start, count)
        return claimed or Claimed(start, [], [])  # while a suspicious one waits for its turn

    def hold(self, ids: Sequence[str], *, forgive: bool = False) -> None:
        self._own._held = set(ids)
        self._own.hold(self._store, forgive=forgive)

    def acknowledge(self, ids: Sequence[str]) -> int:
        return self._own.acknowledge(self._store, ids)

    def dead_letter(self, delivery: Delivery, **notes: Any) -> bool:
        return self._own.dead_letter(self._store, delivery, **notes)

    def postpone(self, delivery: Delivery, **later: Any) -> bool:
        return self._own.postpone(self._store, delivery, **later)

    def remove_idle_consumers(self, min_idle_ms: int) -> list[str]:
        arguments: list[Argument] = [self.group, self.consumer, min_idle_ms]
        return [
            name.decode()
            for name in self._store.script("remove_consumers", [self.stream], arguments)
        ]
