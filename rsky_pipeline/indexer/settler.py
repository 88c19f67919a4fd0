"""Settles the entries of batches that are applied: acknowledged, or a dead letter.

Blocking, for one thread. It may be done again after any failure.
"""

from collections.abc import Callable

from rsky_pipeline.indexer.core.batch import BatchOutcome, EntryBatch, RefusedEntry
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.consumer import GroupReader
from rsky_pipeline.streams.dead_letters import dead_letter


class Settler:
    """Owns the connection that acknowledges."""

    def __init__(self, group: str, consumer: str, open_store: Callable[[], Store]) -> None:
        self._group = group
        self._consumer = consumer
        self._open_store = open_store
        self._store: Store | None = None

    def connect(self) -> Store:
        """Connect where it is not connected. Raises StoreUnavailable, StoreRejected."""
        if self._store is None:
            self._store = self._open_store()
            self._store.ping()
        return self._store

    def disconnect(self) -> None:
        """Close the connection; after a failure nothing is known about it."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def settle(self, batch: EntryBatch, outcome: BatchOutcome) -> BatchOutcome:
        """Make dead letters of refused entries, acknowledge the rest, and return the outcome.

        Raises StoreUnavailable and StoreRejected: then wait, and settle the same batch again.
        """
        store = self.connect()
        reader = GroupReader(store, batch.stream, self._group, self._consumer)
        reasons: dict[str, RefusedEntry] = {}
        for refusal in outcome.refused:
            reasons.setdefault(refusal.item.delivery.id, refusal)
        for refusal in reasons.values():
            delivery = refusal.item.delivery
            outcome.dead_letters += dead_letter(
                store, reader, delivery, reason=refusal.reason, error=refusal.message,
                attempts=delivery.deliveries,
            )  # fmt: skip
        done = [entry_id for entry_id in batch.ids if entry_id not in reasons]
        if done:
            reader.acknowledge(done)
        return outcome
