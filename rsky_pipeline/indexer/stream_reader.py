"""Reads one stream into batches, in a thread of its own.

First what this consumer was given before and did not acknowledge, then new entries; every now and
then what other consumers left behind. An entry is read again and again until it is acknowledged,
so reading may fail at any point.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from rsky_pipeline.indexer.core.batch import BatchItem, EntryBatch
from rsky_pipeline.indexer.core.entries import Reading, Refusal
from rsky_pipeline.indexer.core.labels import LabelReading
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.consumer import SUSPICIOUS_DELIVERIES, Delivery, GroupReader
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.event import MAX_PAYLOAD

Content = Reading | LabelReading
MAX_BATCH_BYTES = 4 * 1024 * 1024
BLOCK_MS = 500
LINGER_SECONDS = 0.03  # how long a small batch waits for more: bounds the number of transactions
_FIRST_GUESS_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class ReadRule:
    """How one stream is read."""

    stream: str
    group: str
    consumer: str
    max_events: int
    claim_idle_ms: int


class StreamReader:
    """One stream's reader; blocking, for one thread at a time.

    `let_go` may be called from another thread.
    """

    def __init__(
        self,
        rule: ReadRule,
        open_store: Callable[[], Store],
        read: Callable[[Delivery], Content],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rule = rule
        self.claimed = 0  # entries taken over from other consumers
        self.bodiless = 0  # entries that were pending and no longer exist
        self._open_store = open_store
        self._read = read
        self._clock = clock
        self._reader: GroupReader | None = None
        self._store: Store | None = None
        self._after: str | None = "0"  # position in the own pending entries; None: all read
        self._careful = False
        self._held: set[str] = set()
        self._recovering: set[str] = set()
        self._entry_bytes = float(_FIRST_GUESS_BYTES)
        self._next_claim = 0.0
        self._claim_start = "0-0"

    def take(self) -> EntryBatch:
        """Return the next batch, or an empty one when nothing came for a while.

        Raises StoreUnavailable and StoreRejected; the next call connects again and re-reads.
        """
        reader = self._connected()
        batch = EntryBatch(self.rule.stream)
        try:
            self._fill(reader, batch)
        except (StoreUnavailable, StoreRejected):
            # Nobody will see this batch: its entries must count as pending, not as worked on.
            self.let_go(batch)
            raise
        batch.more = bool(batch.items) and (self._after is not None or self._room(batch) <= 0)
        return batch

    def _fill(self, reader: GroupReader, batch: EntryBatch) -> None:
        if self._after is not None:
            self._take_pending(reader, batch)
        elif self._clock() >= self._next_claim:
            self._take_claimed(reader, batch)
        if not batch.items and self._after is None:
            self._take_new(reader, batch)

    def let_go(self, batch: EntryBatch) -> None:
        """Note that a batch is not worked on any more."""
        self._held.difference_update(batch.ids)
        self._recovering.difference_update(batch.ids)

    @property
    def held(self) -> list[str]:
        """Ids of the entries that are read and not yet acknowledged."""
        return list(self._held)

    @property
    def recovered(self) -> bool:
        """Whether everything that was pending with this consumer at the start is settled."""
        return self._after is None and not self._recovering

    def disconnect(self) -> None:
        """Close the connection; what was being delivered is found among the pending entries."""
        store, self._store, self._reader = self._store, None, None
        self._after, self._careful = "0", False
        if store is not None:
            store.close()

    def _connected(self) -> GroupReader:
        if self._reader is None:
            rule = self.rule
            self._store = self._open_store()
            reader = GroupReader(self._store, rule.stream, rule.group, rule.consumer)
            reader.ensure()
            self._reader = reader
        return self._reader

    def _take_pending(self, reader: GroupReader, batch: EntryBatch) -> None:
        """Take own entries, one at a time if one of them may have crashed this worker.

        Reading counts as a delivery: entries behind a deadly one must not become suspicious too.
        """
        if self._careful and self._held:
            time.sleep(0.02)  # until the entry before is settled
            return
        assert self._after is not None
        first = self._after == "0"
        page = reader.own_pending(self._after, 1 if first or self._careful else self._room(batch))
        if not page:
            self._after, self._careful = None, False
            return
        self._careful = any(item.deliveries > SUSPICIOUS_DELIVERIES for item in page)
        self._after = page[-1].id
        fresh = [item for item in page if item.id not in self._held]
        self._recovering.update(item.id for item in fresh)
        self._add(batch, fresh)

    def _content(self, delivery: Delivery) -> Content:
        try:
            return self._read(delivery)
        except Exception as error:  # noqa: BLE001 - an entry must not stop the others
            refused = Refusal("internal_error", f"{type(error).__name__}: {error}"[:500])
            return Reading("malformed", "", "", refused=refused)

    def _take_claimed(self, reader: GroupReader, batch: EntryBatch) -> None:
        claimed = reader.claim_idle(
            self.rule.claim_idle_ms, self._claim_start, min(100, self._room(batch)), self._held
        )
        self.claimed += len(claimed.deliveries)
        self.bodiless += len(claimed.deleted)
        self._add(batch, claimed.deliveries)
        self._claim_start = claimed.next_start
        if claimed.next_start == "0-0":
            self._next_claim = self._clock() + self.rule.claim_idle_ms / 2_000

    def _take_new(self, reader: GroupReader, batch: EntryBatch) -> None:
        self._add(batch, reader.read_new(self._room(batch), BLOCK_MS))
        lingered = False
        while batch.items and (room := self._room(batch)) > 0:
            page = reader.read_new(room, 0)
            self._add(batch, page)
            if len(page) < room:
                if lingered or len(batch.items) >= self.rule.max_events // 2:
                    return
                lingered = True
                time.sleep(LINGER_SECONDS)

    def _room(self, batch: EntryBatch) -> int:
        """Return how many more entries to ask for, so that the batch stays within its bounds.

        Sizes are known only afterwards, so pages are as small as the entries before were large.
        """
        free = min(MAX_BATCH_BYTES - batch.size, MAX_BATCH_BYTES // 2)
        if free <= 0:
            return 0
        fitting = max(1, int(free / self._entry_bytes))
        return min(self.rule.max_events - len(batch.items), fitting)

    def _add(self, batch: EntryBatch, page: list[Delivery]) -> None:
        if not page:
            return
        size = 0
        for delivery in page:
            size += sum(len(value) for value in (delivery.fields or {}).values())
            batch.items.append(BatchItem(delivery, self._content(delivery)))
            self._held.add(delivery.id)
        batch.size += size
        average = min(max(size / len(page), 256.0), float(MAX_PAYLOAD))
        # Growth counts at once, shrinking slowly: large entries come in bursts.
        self._entry_bytes = max(average, 0.8 * self._entry_bytes + 0.2 * average)
