"""What became of a batch, for whoever settles it and for metrics and logs."""

from dataclasses import dataclass, field

from rsky_pipeline.indexer.apply import Applied
from rsky_pipeline.indexer.batch import Item


@dataclass(frozen=True, slots=True)
class Refusal:
    """An entry (or a label of it) that was not indexed."""

    item: Item
    reason: str
    message: str


@dataclass(slots=True)
class Outcome:
    """What was applied of a batch and what was not; `buried` only once it is settled."""

    applied: list[Applied] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    labels_added: int = 0
    labels_removed: int = 0
    conflicts: int = 0
    bodiless: int = 0
    buried: int = 0
    seconds: float = 0.0  # that it took to apply
