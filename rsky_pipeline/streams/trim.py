"""Removing entries that no consumer group can want any more."""

from dataclasses import dataclass

from rsky_pipeline.streams.connection import Store


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What a trim did: the lowest id that it kept, and the group that still wants it."""

    removed: int
    floor: str | None
    blocked_by: str | None


def trim(store: Store, stream: str) -> Trimmed:
    """Remove entries below the oldest that any group has not acknowledged.

    A stream without groups is left alone.
    """
    removed, floor, blocker = store.script("trim", [stream], [])
    return Trimmed(int(removed), floor.decode() or None, blocker.decode() or None)
