"""Applies batches: entries that cannot be indexed are told apart, all others are committed.

Blocking, for one thread. A batch may be applied again after any failure.
"""

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError, TransactionConflict
from rsky_pipeline.database.isolation import apply_isolated
from rsky_pipeline.indexer.apply import apply_batch
from rsky_pipeline.indexer.batch import Batch, Item, groups
from rsky_pipeline.indexer.collections.shape import Collection, Put
from rsky_pipeline.indexer.events import Reading
from rsky_pipeline.indexer.labels import LabelReading, apply_labels
from rsky_pipeline.indexer.outcome import Outcome, Refusal
from rsky_pipeline.indexer.plan import Delete

MAX_CONFLICTS = 5  # tries of one transaction before the batch is given a longer pause
# What fails for all entries of a batch is waited for so long (a function that is missing while
# somebody upgrades the database), and then costs this batch: it must not stop the others for ever.
SYSTEMIC_SECONDS = 600.0


class Applier:
    """Owns the connection that writes."""

    def __init__(
        self,
        collections: Mapping[str, Collection],
        max_deliveries: int,
        open_database: Callable[[], Database],
    ) -> None:
        self._collections = collections
        self._max_deliveries = max_deliveries
        self._open_database = open_database
        self._database: Database | None = None
        self._systemic: tuple[str, float] | None = None  # first entry of the batch, since when

    def connect(self) -> None:
        """Connect where it is not connected. Raises DatabaseUnavailable."""
        if self._database is None:
            self._database = self._open_database()

    def disconnect(self) -> None:
        """Close the connection; after a failure nothing is known about it."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def apply(self, batch: Batch) -> Outcome:
        """Apply a batch.

        Raises DatabaseUnavailable and TransactionConflict: then wait, and apply the same batch
        again.
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
        outcome.refused += _refused_labels(batch.items)
        outcome.bodiless = sum(item.delivery.fields is None for item in batch.items)
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

        first, now = present[0].delivery.id, time.monotonic()
        if self._systemic is not None and self._systemic[0] != first:
            self._systemic = None
        since = now if self._systemic is None else self._systemic[1]
        try:
            culprits = apply_isolated(
                present, apply, source=_account, blame_all=now - since > SYSTEMIC_SECONDS
            )
        except DatabaseError as error:
            self._systemic = (first, since) if error.follows_data else None
            raise
        self._systemic = None
        for culprit in culprits:
            text = f"{_subject(culprit.entry)}: {culprit.message}"
            outcome.refused.append(Refusal(culprit.entry, culprit.reason, text))

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


def _account(item: Item) -> str:
    return item.reading.did if isinstance(item.reading, Reading) else item.delivery.id


def _subject(item: Item) -> str:
    """Return what an entry is about, for whoever reads its dead letter."""
    if isinstance(item.reading, LabelReading):
        return ", ".join(label.uri for label in item.reading.labels[:3])
    change = item.reading.change
    return change.uri if isinstance(change, Put | Delete) else item.reading.did


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
