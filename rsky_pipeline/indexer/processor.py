"""Applies a batch and settles its entries: acknowledged after the commit, or a dead letter.

Blocking, for one thread. A batch may be processed again after any failure: applying, burying and
acknowledging can all be repeated.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import TransactionConflict
from rsky_pipeline.indexer.apply import Applied, apply_batch
from rsky_pipeline.indexer.batch import Batch, Item, groups
from rsky_pipeline.indexer.collections.shape import Collection
from rsky_pipeline.indexer.events import Reading
from rsky_pipeline.indexer.labels import LabelReading, apply_labels
from rsky_pipeline.indexer.poison import apply_isolated
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.consume import GroupReader
from rsky_pipeline.streams.dead_letters import dead_letter

MAX_CONFLICTS = 5  # tries of one transaction before the batch is given a longer pause


@dataclass(frozen=True, slots=True)
class Refusal:
    """An entry (or a label of it) that was not indexed."""

    item: Item
    reason: str
    message: str


@dataclass(slots=True)
class Outcome:
    """What became of a batch, for metrics and logs."""

    applied: list[Applied] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    labels_added: int = 0
    labels_removed: int = 0
    conflicts: int = 0
    bodiless: int = 0
    buried: int = 0
    seconds: float = 0.0


class Processor:
    """Owns the connections that write."""

    def __init__(
        self,
        collections: Mapping[str, Collection],
        group: str,
        consumer: str,
        max_deliveries: int,
        open_database: Callable[[], Database],
        open_store: Callable[[], Store],
    ) -> None:
        self._collections = collections
        self._group = group
        self._consumer = consumer
        self._max_deliveries = max_deliveries
        self._open_database = open_database
        self._open_store = open_store
        self._database: Database | None = None
        self._store: Store | None = None

    def connect(self) -> None:
        """Connect where it is not connected. Raises DatabaseUnavailable, StoreUnavailable."""
        if self._database is None:
            self._database = self._open_database()
        if self._store is None:
            self._store = self._open_store()
            self._store.ping()

    def disconnect(self) -> None:
        """Close both connections; after a failure nothing is known about them."""
        database, self._database = self._database, None
        store, self._store = self._store, None
        if database is not None:
            database.close()
        if store is not None:
            store.close()

    def process(self, batch: Batch) -> Outcome:
        """Apply a batch and settle all its entries.

        Raises DatabaseUnavailable, StoreUnavailable, StoreRejected and TransactionConflict: then
        wait, and process the same batch again.
        """
        self.connect()
        started = time.monotonic()
        outcome = Outcome()
        refused = [refusal for item in batch.items if (refusal := self._check(item)) is not None]
        # A refused record is noted, and tells how far its repo is; other entries are not used.
        hopeless = {id(refusal.item) for refusal in refused if not _is_record(refusal)}
        outcome.refused += refused
        for group in groups(batch):
            self._apply([item for item in group if id(item) not in hopeless], outcome)
        self._settle(batch, outcome)
        outcome.seconds = time.monotonic() - started
        return outcome

    def _check(self, item: Item) -> Refusal | None:
        """Return why an entry is not even tried, or None."""
        if item.delivery.deliveries > self._max_deliveries:
            text = f"delivered {item.delivery.deliveries} times and never finished"
            return Refusal(item, "crashes_worker", text)
        if item.delivery.fields is None:
            return None
        if isinstance(item.reading, Reading) and item.reading.refused is not None:
            return Refusal(item, item.reading.refused.reason, item.reading.refused.message)
        return None

    def _apply(self, items: Sequence[Item], outcome: Outcome) -> None:
        present = [item for item in items if item.delivery.fields is not None]
        if not present:
            return

        def apply(part: Sequence[Item]) -> None:
            self._apply_once(part, outcome)

        for culprit in apply_isolated(present, apply):
            outcome.refused.append(Refusal(culprit.entry, culprit.reason, culprit.message))

    def _apply_once(self, items: Sequence[Item], outcome: Outcome) -> None:
        for attempt in range(1, MAX_CONFLICTS + 1):
            try:
                return self._write(items, outcome)
            except TransactionConflict:
                outcome.conflicts += 1
                if attempt == MAX_CONFLICTS:
                    raise
                time.sleep(random.uniform(0.0, 0.05 * attempt))
        return None

    def _write(self, items: Sequence[Item], outcome: Outcome) -> None:
        assert self._database is not None
        readings = [item.reading for item in items if isinstance(item.reading, Reading)]
        if readings:
            outcome.applied.append(apply_batch(self._database, readings, self._collections))
        labels = [
            label
            for item in items
            if isinstance(item.reading, LabelReading)
            for label in item.reading.labels
        ]
        if labels:
            added, removed = apply_labels(self._database, labels)
            outcome.labels_added += added
            outcome.labels_removed += removed

    def _settle(self, batch: Batch, outcome: Outcome) -> None:
        assert self._store is not None
        reader = GroupReader(self._store, batch.stream, self._group, self._consumer)
        outcome.refused += _refused_labels(batch.items)
        reasons: dict[str, Refusal] = {}
        for refusal in outcome.refused:
            reasons.setdefault(refusal.item.delivery.id, refusal)
        for refusal in reasons.values():
            delivery = refusal.item.delivery
            outcome.buried += dead_letter(
                self._store, reader, delivery, reason=refusal.reason, error=refusal.message,
                attempts=delivery.deliveries,
            )  # fmt: skip
        outcome.bodiless = sum(item.delivery.fields is None for item in batch.items)
        done = [entry_id for entry_id in batch.ids if entry_id not in reasons]
        if done:
            reader.acknowledge(done)


def _is_record(refusal: Refusal) -> bool:
    """Tell whether a state of a record was refused, not an entry."""
    reading = refusal.item.reading
    refused = reading.refused if isinstance(reading, Reading) else None
    return refused is not None and bool(refused.uri) and refused.reason == refusal.reason


def _refused_labels(items: Iterable[Item]) -> list[Refusal]:
    return [
        Refusal(item, error.reason, str(error))
        for item in items
        if isinstance(item.reading, LabelReading) and item.delivery.fields is not None
        for error in item.reading.refused
    ]


def kinds(batch: Batch) -> Counter[str]:
    """Return how many events of each type a batch holds."""
    return Counter(item.reading.kind for item in batch.items if isinstance(item.reading, Reading))
