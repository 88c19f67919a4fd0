"""Removing entries that no consumer group can want any more."""

from dataclasses import dataclass

from rsky_pipeline.streams.connection import Store

_AT_ONCE = 10_000  # entries of one call: a few milliseconds of the server
_CALLS = 100


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What a trim did: the lowest id that had to be kept, and the group that still wants it."""

    removed: int
    floor: str | None
    blocked_by: str | None


def trim(store: Store, stream: str) -> Trimmed:
    """Remove entries below the oldest that any group has not acknowledged or not been given.

    A stream without groups is left alone. At most about a million entries are removed; the rest
    goes with the next call. Raises StoreUnavailable and StoreRejected.
    """
    total = 0
    for _ in range(_CALLS):
        removed, floor, blocker = store.script("trim", [stream], [_AT_ONCE])
        total += int(removed)
        if not removed:
            break
    return Trimmed(total, floor.decode() or None, blocker.decode() or None)
