"""Looking at the entries of a stream, and removing them safely: by age, number or type.

Each step of the server is small, so that producers and consumers continue beside it, and may be
repeated: an interrupted command is simply run again.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.limits import BATCH_ENTRIES
from rsky_pipeline.streams.names import FIREHOSE_LIVE
from rsky_pipeline.streams.scan import (
    Mode,
    StoredEntry,
    Unfinished,
    discard,
    moment,
    nature,
    newest,
    oldest,
    pages,
)

# Types that never belong into a stream, so that removing them costs no consumer anything. The live
# stream carries operations on records only; elsewhere a `repo` event is the end of a backfill.
POLLUTION = {FIREHOSE_LIVE: ("repo",)}

Progress = Callable[[int, int], None]  # entries looked at, entries removed


class RemovalRefusedError(Exception):
    """The removal needs `force`; the message names the loss."""


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
            return "no entry that a group still needs"
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


@dataclass(frozen=True, slots=True)
class Cut:
    """The result of `trim`, `reset` and `purge`, or of their dry run.

    `lost` entries were removed although a group still needed them; `kept` ones were not removed.
    `last_id` is the last entry that was looked at: continue after it.
    """

    stream: str
    looked_at: int
    removed: int
    lost: Losses = field(default_factory=Losses)
    kept: Losses = field(default_factory=Losses)
    last_id: str | None = None
    by_type: Counter[str] = field(default_factory=Counter)

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "stream": self.stream, "looked_at": self.looked_at, "removed": self.removed,
            "by_type": dict(self.by_type), "lost": self.lost.document(),
            "kept": self.kept.document(), "last_id": self.last_id,
        }  # fmt: skip


def trim(
    store: Store,
    stream: str,
    *,
    keep_seconds: float | None = None,
    maxlen: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    on_progress: Progress = lambda looked_at, removed: None,
) -> Cut:
    """Remove the oldest entries: those older than `keep_seconds`, or all but `maxlen`.

    Without `force`, entries that a group has not read or not acknowledged stay. Raises
    RemovalRefusedError for a stream that does not exist, StoreUnavailableError and
    StoreRejectedError.
    """
    report = inspect(store, stream)
    if report.last_id is None:
        raise RemovalRefusedError(f"there is no stream {stream}")
    until, most = report.last_id, report.length
    if keep_seconds is not None:
        seconds, micros = store.call("TIME")
        until = f"({max(0, int(seconds) * 1000 + int(micros) // 1000 - int(keep_seconds * 1000))}-0"
    if maxlen is not None:
        most = max(0, report.length - maxlen)
    return _cut(store, stream, until, most, (force, dry_run), on_progress)


def reset(
    store: Store,
    stream: str,
    *,
    force: bool = False,
    dry_run: bool = False,
    on_progress: Progress = lambda looked_at, removed: None,
) -> Cut:
    """Remove every entry that is there now; groups, their positions and cursors stay.

    Without `force` nothing is removed while a group has unread or unacknowledged entries: raises
    RemovalRefusedError, which names the loss.
    """
    if not force and not dry_run:
        kept = trim(store, stream, maxlen=0, dry_run=True, on_progress=on_progress).kept
        if kept.entries:
            raise RemovalRefusedError(f"{stream} holds {kept.sentence()}")
    return trim(store, stream, maxlen=0, force=force, dry_run=dry_run, on_progress=on_progress)


def purge(
    store: Store,
    stream: str,
    kinds: Sequence[str],
    *,
    after: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    on_progress: Progress = lambda looked_at, removed: None,
) -> Cut:
    """Remove the entries of some types, read or not, and keep all others where they are.

    Begins after an id, ends at the newest entry of now. Without `force` only types that do not
    belong into the stream can be removed; raises RemovalRefusedError for others.
    """
    wanted = set(kinds)
    foreign = wanted - set(POLLUTION.get(stream, ()))
    if foreign and not (force or dry_run):
        raise RemovalRefusedError(f"{', '.join(sorted(foreign))} entries belong into {stream}")
    report = inspect(store, stream)
    if report.last_id is None:
        raise RemovalRefusedError(f"there is no stream {stream}")
    looked_at = removed = 0
    lost, by_type, last = Losses(), Counter[str](), after
    mode: Mode = "look" if dry_run else "all"
    for page in pages(store, stream, after=after, until=report.last_id, count=BATCH_ENTRIES):
        found = [entry for entry in page if nature(entry.fields).kind in wanted]
        if found:
            done = discard(store, stream, [entry.id for entry in found], mode)
            lost.add(found, done.unfinished)
            removed += len(found) if dry_run else done.removed
            by_type.update(nature(entry.fields).kind for entry in found)
        looked_at, last = looked_at + len(page), page[-1].id
        on_progress(looked_at, removed)
    return Cut(stream, looked_at, removed, lost, Losses(), last, by_type)


def _cut(
    store: Store,
    stream: str,
    until: str,
    most: int,
    how: tuple[bool, bool],
    on_progress: Progress,
) -> Cut:
    force, dry_run = how
    mode: Mode = "look" if dry_run else "all" if force else "finished"
    looked_at = removed = 0
    wanted, last = Losses(), None
    for full_page in pages(store, stream, until=until, count=BATCH_ENTRIES):
        page = full_page[: most - looked_at]
        if not page:
            break
        done = discard(store, stream, [entry.id for entry in page], mode)
        wanted.add(page, done.unfinished)
        unfinished = len({item.id for item in done.unfinished})
        removed += done.removed if not dry_run else len(page) - (0 if force else unfinished)
        looked_at, last = looked_at + len(page), page[-1].id
        on_progress(looked_at, removed)
    lost, kept = (wanted, Losses()) if force else (Losses(), wanted)
    return Cut(stream, looked_at, removed, lost, kept, last)


def _named(counts: Mapping[str, int]) -> dict[str, int]:
    return {group or "anybody": count for group, count in counts.items()}


# --- looking at a sample ------------------------------------------------------------------------


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
