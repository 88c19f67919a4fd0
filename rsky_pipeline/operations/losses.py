"""Exactly what a removal takes away from consumers. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rsky_pipeline.streams.discard import Unfinished
from rsky_pipeline.streams.scan import StoredEntry, milliseconds, nature


@dataclass(slots=True)
class Losses:
    """Entries that some group has not finished with, counted; ids and times are of the first and
    last of them."""

    entries: int = 0
    by_type: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)  # by group
    pending: Counter[str] = field(default_factory=Counter)  # by group
    first_id: str = ""
    last_id: str = ""

    def add(self, page: Iterable[StoredEntry], unfinished: Iterable[Unfinished]) -> None:
        """Count the unfinished entries of a page."""
        wanted: dict[str, None] = {}
        for item in unfinished:
            (self.unread if item.state == "unread" else self.pending)[item.group] += 1
            wanted[item.id] = None
        for entry in page:
            if entry.id in wanted:
                self.by_type[nature(entry.fields).kind] += 1
        if wanted:
            self.entries += len(wanted)
            self.first_id = self.first_id or next(iter(wanted))
            self.last_id = next(reversed(wanted))

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "entries": self.entries,
            "by_type": dict(self.by_type),
            "unread_by_group": _named(self.unread),
            "pending_by_group": _named(self.pending),
            "first_id": self.first_id or None,
            "last_id": self.last_id or None,
            "first_time": moment(self.first_id),
            "last_time": moment(self.last_id),
        }

    def sentence(self) -> str:
        """Return it in words."""
        if not self.entries:
            return "no entry that anybody still wants"
        types = ", ".join(f"{count:,} {kind}" for kind, count in self.by_type.most_common())
        states = [
            f"{count:,} {state} by {group}"
            for state, counts in (("unread", self.unread), ("not acknowledged", self.pending))
            for group, count in _named(counts).items()
        ]
        return (
            f"{self.entries:,} entries ({types}; {', '.join(states)}) from {self.first_id} "
            f"({moment(self.first_id)}) to {self.last_id} ({moment(self.last_id)})"
        )


def moment(entry_id: str) -> str | None:
    """Return when an entry was appended, as a UTC time; None for no id."""
    if not entry_id:
        return None
    when = datetime.fromtimestamp(milliseconds(entry_id) / 1000, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _named(counts: Mapping[str, int]) -> dict[str, int]:
    return {group or "anybody": count for group, count in counts.items()}
