"""Which frames of a connection are news, by their sequence numbers. Pure.

Source: sync specification and what hosts were seen to do. Some send the event of the cursor again
and some do not; one that lost its state, or never had ours, may silently start far below it.
Numbers may have gaps, and one that is far too high may be a damaged one: were it believed, all that
follows would be old, and the stored cursor one that the host has never heard of.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

# A host that sends this many old events in a row, or for this long, will not get to new ones soon.
MAX_OLD_FRAMES = 1_000
MAX_OLD_SECONDS = 30.0
MAX_STEP = 10  # of numbers that are taken as they come, until one from between says otherwise
CONFIRMED_BY = 3  # rising numbers above a larger step, the first of them included

Place = Literal["next", "ahead", "old"]


class Jump(NamedTuple):
    """A larger step, and whether the host went on from there."""

    before: int
    seq: int
    followed: bool


@dataclass(slots=True)
class SeqGate:
    """Tells where a frame stands among those before it, on one connection.

    A frame that is `ahead`, behind a large step, is news like any other, but does not move the
    cursor until the host has gone on from there for a moment. A small step is taken back when an
    event from between comes: the number was damaged, or two events have changed places.
    """

    last: int  # the highest that is believed; to begin with the cursor asked for, or -1 for none
    old: int = 0  # frames at or below it since the last good one
    old_since: float = 0.0
    jumps: list[Jump] = field(default_factory=list)  # what was decided; whoever reads it clears it
    _ahead: list[int] = field(default_factory=list)  # rising, all above `last`
    _before: int | None = None  # what `last` was before its latest step, if that was a small one

    def place(self, seq: int, now: float) -> Place:
        """Take note of a frame and return its place; `now` is in monotonic seconds."""
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
