"""A batch of stream entries, and its outcome."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from rsky_pipeline.indexer.bsync.operations import BsyncReading
from rsky_pipeline.indexer.collections.values import Delete, Put
from rsky_pipeline.indexer.core.entries import Reading
from rsky_pipeline.indexer.core.labels import LabelReading
from rsky_pipeline.streams.consumer import Delivery


class BatchItem(NamedTuple):  # one an entry, like its delivery
    """One entry and its content."""

    delivery: Delivery
    reading: Reading | LabelReading | BsyncReading

    @property
    def account(self) -> str:
        """The DID whose entry it is; for labels, which are of anybody, the entry's own id."""
        reading = self.reading
        if isinstance(reading, BsyncReading) and reading.operation is not None:
            return reading.operation.item.actor
        return reading.did if isinstance(reading, Reading) else self.delivery.id

    @property
    def subject(self) -> str:
        """The uris or the DID of the entry, for whoever reads its dead letter."""
        if isinstance(self.reading, BsyncReading):
            each = self.reading.operation
            return "" if each is None else f"{each.log} {each.id} of {each.item.actor}"
        if isinstance(self.reading, LabelReading):
            return ", ".join(label.uri for label in self.reading.labels[:3])
        change = self.reading.change
        return change.uri if isinstance(change, Put | Delete) else self.reading.did


@dataclass(slots=True)
class EntryBatch:
    """Entries of one stream in their order."""

    stream: str
    items: list[BatchItem] = field(default_factory=list)
    size: int = 0  # bytes of the payloads
    more: bool = False  # it is full, so there is probably more to read


@dataclass(frozen=True, slots=True)
class Applied:
    """The effect of one transaction, in rows of `record` and more."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    touched: int = 0
    stale: int = 0
    notifications: int = 0
    new_actors: int = 0
    written: Mapping[str, int] = field(default_factory=Counter)  # collection -> new and updated


@dataclass(frozen=True, slots=True)
class RefusedEntry:
    """An entry (or a label of it) that was not indexed."""

    item: BatchItem
    reason: str
    message: str


@dataclass(slots=True)
class BatchOutcome:
    """The transactions of a batch, and the entries of it that were refused.

    `dead_letters` is known only once the batch is acknowledged.
    """

    applied: list[Applied] = field(default_factory=list)
    refused: list[RefusedEntry] = field(default_factory=list)
    labels_added: int = 0
    labels_removed: int = 0
    bsync: Counter[tuple[str, str]] = field(default_factory=Counter)  # by log and outcome
    conflicts: int = 0
    bodiless: int = 0
    dead_letters: int = 0
    seconds: float = 0.0  # that it took to apply
    mark: int = 0  # the number of its last transaction; 0 if nothing was written
    left_out: Counter[str] = field(default_factory=Counter)  # blocked entries, by kind of block
