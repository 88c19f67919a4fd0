"""Removing chosen entries of a stream, beside producers and consumers that go on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rsky_pipeline.streams.connection import Store

Mode = Literal["look", "finished", "all"]
AT_ONCE = 500  # entries of one call: about a millisecond of the server


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An entry that a group has not been given (`unread`) or has not acknowledged (`pending`)."""

    id: str
    group: str  # empty where the stream has no groups, so that nobody has read it
    state: str


@dataclass(frozen=True, slots=True)
class Discarded:
    """What one call did: how many entries it removed, and which ones somebody still wants.

    The latter were removed too by the mode `all`, and are still there after the others.
    """

    removed: int
    unfinished: tuple[Unfinished, ...]


def discard(store: Store, stream: str, ids: Sequence[str], mode: Mode) -> Discarded:
    """Remove at most AT_ONCE entries as `mode` says, in one step of the server.

    `look` removes nothing, `finished` only what every group has acknowledged, `all` everything,
    acknowledging it. A repeated call does nothing more. Raises StoreUnavailable and StoreRejected,
    and ValueError for too many ids.
    """
    if len(ids) > AT_ONCE:
        raise ValueError(f"{len(ids)} entries at once, at most {AT_ONCE}")
    removed, *rows = store.script("discard", [stream], [mode, *ids])
    found = (Unfinished(*(item.decode() for item in row)) for row in rows)
    return Discarded(int(removed), tuple(found))
