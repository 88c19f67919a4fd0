"""The groups that streams should have, repairing those that are broken, and removing others.

Nothing that a consumer has not processed is ever acknowledged by a repair, except pending entries
whose body is gone: no worker can process these.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rsky_pipeline.configuration.advice import advised
from rsky_pipeline.runtime.errors import printable
from rsky_pipeline.streams.connection import Store, text_of
from rsky_pipeline.streams.consumer import ensure_group
from rsky_pipeline.streams.errors import StoreRejectedError
from rsky_pipeline.streams.lag import GroupReport, StreamReport, inspect
from rsky_pipeline.streams.limits import PAGE_ENTRIES
from rsky_pipeline.streams.marks import forget_group
from rsky_pipeline.streams.names import STREAMS

OTHER = "other_group"
IN_USE_SECONDS = 60.0  # a consumer that was idle for less may go on at any moment


@dataclass(frozen=True, slots=True)
class GroupRepair:
    """A fault of a group; `done` if it was repaired.

    `what` is one of missing_group, position_past_end, phantom_entries, idle_consumer (holds
    nothing), dead_consumer (holds entries, which only a worker can process) and other_group (of
    another program or index: no fault, but entries stay until it has read them).
    """

    stream: str
    group: str
    what: str
    detail: str
    count: int
    done: bool


def repair(
    store: Store,
    groups: Mapping[str, str],
    *,
    idle_seconds: float,
    dry_run: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> list[GroupRepair]:
    """Repair the groups of these streams, beside running workers.

    Consumers that did nothing for `idle_seconds` are taken for dead. Raises StoreUnavailableError
    and StoreRejectedError.
    """
    found: list[GroupRepair] = []
    for stream, group in groups.items():
        on_step(f"{stream}: {group}")
        report = inspect(store, stream)
        if report.last_id is None:
            continue
        names = [item.name for item in report.groups]
        if group not in names:
            found.append(_make_missing(store, stream, group, report.length, dry_run))
        for item in report.groups:
            try:
                found += _repair_group(store, report, item, idle_seconds, dry_run)
            except StoreRejectedError as error:
                if "NOGROUP" not in str(error):
                    raise
                # It is gone since, or of another program, whose name for it is no UTF-8.
            if item.name != group:
                found.append(_other(stream, item))
    return found


def _other(stream: str, group: GroupReport) -> GroupRepair:
    detail = (
        f"not of this configuration; {group.lag:,} unread and {group.pending:,} pending entries "
        "are kept for it. If no program uses it any more: "
        + advised("streams", "groups", "remove", group.name)
    )
    return GroupRepair(stream, group.name, OTHER, detail, group.lag + group.pending, done=False)


@dataclass(frozen=True, slots=True)
class GroupRemoval:
    """A group of a stream that goes, and what it leaves undone."""

    stream: str
    group: str
    unread: int
    pending: int
    consumers: int
    idle_seconds: float | None  # since a consumer last asked; None without consumers

    @property
    def in_use(self) -> bool:
        """Whether a consumer asked for entries just now."""
        return self.idle_seconds is not None and self.idle_seconds < IN_USE_SECONDS


def find_group(store: Store, group: str, streams: Sequence[str]) -> list[GroupRemoval]:
    """Return what removing a group would mean, for each of these streams that has it.

    Raises StoreUnavailableError and StoreRejectedError.
    """
    found = []
    for stream in streams:
        name = _raw_name(store, stream, group)
        report = None if name is None else inspect(store, stream).group(text_of(name))
        if report is None or name is None:
            continue
        rows = store.call("XINFO", "CONSUMERS", stream, name)
        idle = [dict(zip(row[::2], row[1::2], strict=True))[b"idle"] / 1_000 for row in rows]
        found.append(
            GroupRemoval(
                stream, group, report.lag, report.pending, len(rows), min(idle, default=None)
            )
        )
    return found


def remove_group(store: Store, group: str, streams: Sequence[str]) -> int:
    """Remove a group from streams, and what is noted of it once no stream has it; return how many.

    Entries that only this group had not finished are trimmed as those that all have finished.
    Raises StoreUnavailableError and StoreRejectedError.
    """
    removed = 0
    for stream in streams:
        name = _raw_name(store, stream, group)
        if name is not None:
            removed += int(store.call("XGROUP", "DESTROY", stream, name))
    if removed and not find_group(store, group, STREAMS):
        forget_group(store, group)
    return removed


def _raw_name(store: Store, stream: str, group: str) -> bytes | None:
    """Return the name of a group as Redis has it, which need not be text, by the one shown."""
    if not store.call("EXISTS", stream):
        return None
    rows = store.call("XINFO", "GROUPS", stream)
    names = [dict(zip(row[::2], row[1::2], strict=True))[b"name"] for row in rows]
    return next(
        (name for name in names if group in (text_of(name), printable(text_of(name)))), None
    )


def _repair_group(
    store: Store, report: StreamReport, group: GroupReport, idle_seconds: float, dry_run: bool
) -> list[GroupRepair]:
    stream, last = report.name, report.last_id or ""
    found = []
    if _sortable(group.last_delivered_id) > _sortable(last):
        where = (group.last_delivered_id, last)
        found.append(_set_back(store, stream, group.name, where, report.length, dry_run))
    found += _phantoms(store, stream, group.name, dry_run)
    found += _consumers(store, stream, group.name, idle_seconds, dry_run)
    return found


def _make_missing(store: Store, stream: str, group: str, length: int, dry_run: bool) -> GroupRepair:
    if not dry_run:
        ensure_group(store, stream, group)
    detail = f"created at the beginning, {length:,} entries are unread"
    return GroupRepair(stream, group, "missing_group", detail, 1, not dry_run)


def _set_back(
    store: Store, stream: str, group: str, where: tuple[str, str], length: int, dry_run: bool
) -> GroupRepair:
    """Begin at the first entry again: nothing is missed, and applying twice changes nothing."""
    if not dry_run:
        store.call("XGROUP", "SETID", stream, group, "0")
    detail = (
        f"stood at {where[0]}, behind the last entry {where[1]}, so that new entries were not "
        f"delivered; set to the beginning, {length:,} entries are delivered (again)"
    )
    return GroupRepair(stream, group, "position_past_end", detail, 1, not dry_run)


def _phantoms(store: Store, stream: str, group: str, dry_run: bool) -> Iterator[GroupRepair]:
    start, count, first, last = "-", 0, "", ""
    while start:
        arguments: list[str | int] = [group, start, PAGE_ENTRIES, "" if dry_run else "acknowledge"]
        following, *gone = store.script("phantoms", [stream], arguments)
        if gone:
            count, first, last = count + len(gone), first or gone[0].decode(), gone[-1].decode()
        start = following.decode()
    if count:
        detail = f"acknowledged pending entries without a body, {first} to {last}"
        yield GroupRepair(stream, group, "phantom_entries", detail, count, not dry_run)


def _consumers(
    store: Store, stream: str, group: str, idle_seconds: float, dry_run: bool
) -> Iterator[GroupRepair]:
    least = int(idle_seconds * 1000)
    rows = [
        dict(zip(row[::2], row[1::2], strict=True))
        for row in store.call("XINFO", "CONSUMERS", stream, group)
    ]
    living = [text_of(row[b"name"]) for row in rows if row[b"idle"] < least]
    idle = [row for row in rows if row[b"idle"] >= least]
    removed = [text_of(row[b"name"]) for row in idle if not row[b"pending"]]
    if removed and not dry_run:
        script = store.script("remove_consumers", [stream], [group, "", least])
        removed = [text_of(name) for name in script]
    if removed:
        detail = f"removed consumers that hold nothing: {', '.join(removed)}"
        yield GroupRepair(stream, group, "idle_consumer", detail, len(removed), not dry_run)
    for row in idle:
        if row[b"pending"]:
            yield _dead(stream, group, row, living)


def _dead(stream: str, group: str, row: Mapping[bytes, Any], living: list[str]) -> GroupRepair:
    """Entries of a dead consumer are work that only a worker can do: they are left for one."""
    name, hours = text_of(row[b"name"]), row[b"idle"] / 3_600_000
    who = f"{living[0]} takes them over" if living else "start a worker, which takes them over"
    detail = (
        f"{name} was idle for {hours:.1f} h and holds {row[b'pending']:,} entries; {who} after "
        "claim_idle_seconds, then the consumer can be removed"
    )
    return GroupRepair(stream, group, "dead_consumer", detail, int(row[b"pending"]), done=False)


def _sortable(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number or 0)
