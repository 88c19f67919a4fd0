"""A batch: stream entries and what they say, ready to be applied."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rsky_pipeline.indexer.events import Reading
from rsky_pipeline.indexer.labels import LabelReading
from rsky_pipeline.streams.consume import SUSPICIOUS_DELIVERIES, Delivery


@dataclass(frozen=True, slots=True)
class Item:
    """One entry and its content."""

    delivery: Delivery
    reading: Reading | LabelReading

    @property
    def suspicious(self) -> bool:
        """Whether the entry should not share its transaction with others."""
        return self.delivery.deliveries > SUSPICIOUS_DELIVERIES


@dataclass(slots=True)
class Batch:
    """Entries of one stream in their order."""

    stream: str
    items: list[Item] = field(default_factory=list)
    size: int = 0  # bytes of the payloads
    more: bool = False  # it is full, so there is probably more to read

    @property
    def ids(self) -> Sequence[str]:
        """Ids of all entries."""
        return [item.delivery.id for item in self.items]


def groups(batch: Batch) -> list[list[Item]]:
    """Return the entries in order, cut so that every suspicious one is alone."""
    found: list[list[Item]] = []
    together = False
    for item in batch.items:
        if item.suspicious or not together:
            found.append([item])
        else:
            found[-1].append(item)
        together = not item.suspicious
    return found
