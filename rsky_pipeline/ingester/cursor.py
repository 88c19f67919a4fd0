"""Where a stream is read from, and which frames of it are news. Pure.

Source: sync specification and what hosts were seen to do. Some send the event of the cursor again
and some do not; one that lost its state, or never had ours, may silently start far below it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import orjson

from rsky_pipeline.configuration.settings import InitialCursor

# A host that sends this many old events in a row, or for this long, will not get to new ones soon.
MAX_OLD_FRAMES = 1_000
MAX_OLD_SECONDS = 30.0


class InvalidCursor(ValueError):
    """A stored cursor that is no number; somebody must decide what to do."""


def parse_cursor(text: str | None) -> int | None:
    """Read a stored cursor. Raises InvalidCursor."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise InvalidCursor(f"the stored cursor {text[:50]!r} is not a sequence number")
    return int(text)


class Position(NamedTuple):
    """What is noted with a stored cursor: the newest event that it covers."""

    seq: int | None
    time: str | None  # as the event had it
    reset: bool = False  # an operator took the cursor away, to start at the initial position


def parse_position(noted: bytes | None) -> Position | None:
    """Read what was noted with a cursor; None where nothing usable was."""
    try:
        body = orjson.loads(noted or b"null")
    except orjson.JSONDecodeError:
        return None
    if not isinstance(body, dict):
        return None
    seq, time = body.get("seq"), body.get("time")
    return Position(
        seq if type(seq) is int else None,
        time if type(time) is str else None,
        body.get("reset") is True,
    )


def start_position(
    stored: int | None, last_known: int | None, initial: InitialCursor
) -> int | None:
    """Return the cursor to subscribe with; None means from now on, 0 the oldest event.

    A stored cursor wins. When the store has forgotten it, what this process wrote last is a better
    start than "now", but no better than a start that was asked for.
    """
    if stored is not None:
        return stored
    if initial == "live":
        return last_known
    return 0 if initial == "oldest" else initial


@dataclass(slots=True)
class SeqGate:
    """Lets only frames with rising sequence numbers through, on one connection."""

    last: int  # the highest so far; to begin with the cursor that was asked for
    old: int = 0  # frames at or below it since the last good one
    old_since: float = 0.0

    def admits(self, seq: int, now: float) -> bool:
        """Tell whether a frame is news."""
        if seq > self.last:
            self.last = seq
            self.old = 0
            return True
        if not self.old:
            self.old_since = now
        self.old += 1
        return False

    def is_behind(self, now: float) -> bool:
        """Tell whether the host seems to be far below our cursor, as if it had lost its state."""
        if self.old > MAX_OLD_FRAMES:
            return True
        return self.old > 1 and now - self.old_since > MAX_OLD_SECONDS
