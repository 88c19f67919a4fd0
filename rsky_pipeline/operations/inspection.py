"""The contents of a stream, from a sample of its entries."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from rsky_pipeline.operations.cleaning import POLLUTION
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.scan import StoredEntry, moment, nature, newest, oldest


@dataclass(frozen=True, slots=True)
class Inspection:
    """A sample counted; sizes are the bytes of names and values."""

    stream: str
    length: int
    sampled: int
    first_id: str
    last_id: str
    by_type: Counter[str]
    by_collection: Counter[str]
    sizes: tuple[int, ...]  # sorted
    examples: dict[str, str]  # type -> id

    @property
    def polluting(self) -> int:
        """How many of the sample do not belong into the stream."""
        return sum(self.by_type[kind] for kind in POLLUTION.get(self.stream, ()))

    def size(self, share: float) -> int:
        """Return the size that this share of the sample is not above."""
        return self.sizes[min(len(self.sizes) - 1, int(share * len(self.sizes)))]

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        result: dict[str, Any] = {
            "stream": self.stream, "length": self.length, "sampled": self.sampled,
            "first_id": self.first_id or None, "last_id": self.last_id or None,
            "first_time": moment(self.first_id), "last_time": moment(self.last_id),
            "by_type": dict(self.by_type.most_common()),
            "by_collection": dict(self.by_collection.most_common()),
            "polluting": self.polluting, "examples": self.examples, "bytes": None,
        }  # fmt: skip
        if self.sizes:
            result["bytes"] = {
                "mean": round(sum(self.sizes) / len(self.sizes), 1),
                "median": self.size(0.5), "p95": self.size(0.95), "largest": self.sizes[-1],
            }  # fmt: skip
        return result


def sample_stream(
    store: Store, stream: str, count: int, *, from_oldest: bool = False
) -> Inspection:
    """Look at the newest entries of a stream, or at the oldest.

    Raises StoreUnavailableError and StoreRejectedError.
    """
    length = int(store.call("XLEN", stream))
    entries = oldest(store, stream, count) if from_oldest else newest(store, stream, count)[::-1]
    return inspected(stream, length, entries)


def inspected(stream: str, length: int, entries: list[StoredEntry]) -> Inspection:
    """Count entries, which are in order. Pure."""
    by_type, by_collection, examples = Counter[str](), Counter[str](), dict[str, str]()
    for entry in entries:
        found = nature(entry.fields)
        by_type[found.kind] += 1
        examples.setdefault(found.kind, entry.id)
        if found.collection:
            by_collection[found.collection] += 1
    first, last = (entries[0].id, entries[-1].id) if entries else ("", "")
    sizes = tuple(sorted(entry.size for entry in entries))
    return Inspection(
        stream, length, len(entries), first, last, by_type, by_collection, sizes, examples
    )
