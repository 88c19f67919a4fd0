"""Sequence numbers and times of one event stream: cursors, new frames, jumps and gaps. Pure.

Hosts may number and date their events as they like, so both are untrusted. Some hosts send the
event of the cursor again and some do not; one that lost its state, or never had ours, may silently
start far below it. A number that is far too high may be damaged: if it moved the cursor, all events
after it would be old, and the stored cursor one that the host has never sent.

Relays do not report gaps reliably: production ones begin silently with the oldest event that they
still have (indigo#1328), and one that replaced another numbers events anew.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import orjson

from rsky_pipeline.configuration.settings import InitialCursor
from rsky_pipeline.streams.gap import CURSOR_REFUSED, Gap, GapKind


class InvalidCursorError(ValueError):
    """A stored cursor that is no number; an operator has to decide."""


def parse_cursor(text: str | None) -> int | None:
    """Read a stored cursor. Raises InvalidCursorError."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise InvalidCursorError(f"the stored cursor {text[:50]!r} is not a sequence number")
    return int(text)


class Position(NamedTuple):
    """The note of a stored cursor: the newest event that it covers."""

    seq: int | None
    time: str | None  # as the event had it
    reset: bool = False  # an operator took the cursor away, to start at the initial position


def parse_position(noted: bytes | None) -> Position | None:
    """Read the note of a cursor; None where it is missing or unusable."""
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

    A stored cursor wins. When the store has lost it, the last one that this process stored is a
    better start than "now", but no better than a start that was asked for.
    """
    if stored is not None:
        return stored
    if initial == "live":
        return last_known
    return 0 if initial == "oldest" else initial


# A host that sends this many old events in a row, or for this long, will not get to new ones soon.
MAX_OLD_FRAMES = 1_000
MAX_OLD_SECONDS = 30.0
MAX_STEP = 10  # of numbers that move the cursor at once, until one from between comes
CONFIRMED_BY = 3  # rising numbers above a larger step, the first of them included

Place = Literal["next", "ahead", "old"]


class Jump(NamedTuple):
    """A larger step, and whether the host went on from there."""

    before: int
    seq: int
    followed: bool


@dataclass(slots=True)
class SeqGate:
    """Places each frame among those before it, on one connection.

    A frame that is `ahead`, behind a large step, is news like any other, but does not move the
    cursor until the host has gone on from there for a moment. A small step is taken back when an
    event from between comes: the number was damaged, or two events have changed places.
    """

    last: int  # the highest that counts; to begin with the cursor asked for, or -1 for none
    old: int = 0  # frames at or below it since the last good one
    old_since: float = 0.0
    jumps: list[Jump] = field(default_factory=list)  # new ones; the reader clears it
    _ahead: list[int] = field(default_factory=list)  # rising, all above `last`
    _before: int | None = None  # `last` before its latest step, if that was a small one

    def place(self, seq: int, now: float) -> Place:
        """Return the place of the next frame; `now` is in monotonic seconds."""
        if self.last < 0:  # nothing to compare it with
            self.last = seq
            return "next"
        if self._before is not None and self._before < seq < self.last:
            self.jumps.append(Jump(self._before, self.last, False))
            self.last = self._before
        elif seq <= self.last or seq in self._ahead:
            if not self.old:
                self.old_since = now
            self.old += 1
            return "old"
        self.old = 0
        if self._ahead and seq > self._ahead[0]:
            # Those between were the damaged ones, if this one is none.
            self._ahead = [number for number in self._ahead if number < seq]
            if len(self._ahead) + 1 >= CONFIRMED_BY:
                self.jumps.append(Jump(self.last, self._ahead[0], True))
                self.last, self._before = self._ahead[-1], None
                self._ahead = []
        elif self._ahead:
            self.jumps.append(Jump(self.last, self._ahead[0], False))
            self._ahead = []
        if seq - self.last <= MAX_STEP:
            self._before = self.last if seq - self.last > 1 else None
            self.last = seq
            return "next"
        self._ahead.append(seq)
        return "ahead"

    def is_behind(self, now: float) -> bool:
        """Tell whether the host seems to be far below our cursor, as if it had lost its state."""
        if self.old > MAX_OLD_FRAMES:
            return True
        return self.old > 1 and now - self.old_since > MAX_OLD_SECONDS


MAX_SEQ_STEP = 1_000_000_000  # between two events; a month of the busiest day so far
# A stored cursor is continued with the event after it. Where numbers are missing and so much time,
# events were not sent; a host without events for so long goes on with the next number.
MAX_TIME_STEP = 900.0


class GapWatch:
    """Finds gaps in the events of one connection that continues a stored cursor.

    With `stored` None there is nothing to continue, and no gap is found. `refused` is the position
    at which the host refused to continue. It numbers its events anew then, and the first one is
    behind a gap whatever its number: one that has come to the old cursor meanwhile accepts it.
    """

    def __init__(
        self,
        host: str,
        stored: int | None,
        position: Position | None,
        refused: Position | None = None,
    ) -> None:
        self._host = host
        self._refused = refused
        self._seq = stored
        known = position is not None and position.seq == stored
        self._time = position.time if position is not None and known else None
        self._first = True
        self.outdated = False  # set by an info frame: the cursor is older than the oldest event

    def observe(self, seq: int, time: str | None) -> Gap | None:
        """Return the gap before an event, if there is one."""
        if self._refused is not None:
            before, self._refused = self._refused, None
            self._seq, self._time, self._first = seq, time, False
            return Gap(self._host, CURSOR_REFUSED, before.seq, seq, before.time, time)
        if self._seq is None:
            return None
        kind = self._kind(seq - self._seq, time)
        gap = None
        if kind is not None:
            gap = Gap(self._host, kind, self._seq, seq, self._time, time)
        self._seq, self._first, self.outdated = seq, False, False
        self._time = time or self._time
        return gap

    def _kind(self, step: int, time: str | None) -> GapKind | None:
        if self.outdated:
            return "outdated_cursor"
        if step > MAX_SEQ_STEP:
            return "seq_jump"
        if self._first and step > 1 and self._time is not None and time is not None:
            before, now = timestamp(self._time), timestamp(time)
            if before is not None and now is not None and now - before > MAX_TIME_STEP:
                return "time_jump"
        return None


def timestamp(text: str) -> float | None:
    """Return an event's time in seconds since 1970; None for a text that is no time."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
