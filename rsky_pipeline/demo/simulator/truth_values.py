"""What the truth is made of: rows by key, and values that are not one value only."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rsky_pipeline.demo.simulator.reading import EPOCH, utc_milliseconds

Key = tuple[str, ...]
Rows = dict[Key, tuple[Any, ...]]
Truth = dict[str, Rows]

ANY = {"any": True}  # a value that what was published does not decide


def one_of(values: Iterable[Any]) -> Any:
    """Return a value that may be any of several."""
    return {"one_of": list(values)}


def admits(expected: Any, found: Any) -> bool:
    """Tell whether a value is as expected; a missing row is found as None."""
    if isinstance(expected, dict):
        return "any" in expected or found in expected["one_of"]
    return bool(expected == found)


@dataclass(frozen=True, slots=True)
class Entry:
    """A record that stands, in its JSON form; `published` is the time of its frame."""

    uri: str
    did: str
    rkey: str
    cid: str
    published: str
    record: dict[str, Any]

    @property
    def created_at(self) -> str:
        """The record's own time in the normal form."""
        return utc_milliseconds(self.record.get("createdAt", EPOCH))

    @property
    def sort_at(self) -> Any:
        """The earlier of its own time and that when it was seen, which is after its frame's."""
        return self.created_at if self.created_at <= self.published else ANY
