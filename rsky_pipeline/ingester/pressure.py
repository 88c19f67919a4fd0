"""Back-pressure: when to stop reading, when to go on, and when to give the connection up. Pure.

A socket that is not read for long makes the host end it, late and without telling; a goodbye and
a new start from the cursor is better for both sides.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Pressure:
    """The state of one reader. Times are monotonic seconds."""

    max_events: int
    max_bytes: int
    patience: float = 5.0  # of a pause, before the connection is closed
    since: float | None = None  # start of the present pause

    @property
    def active(self) -> bool:
        """Whether reading is held up."""
        return self.since is not None

    def observe(self, events: int, size: int, now: float) -> bool:
        """Take note of what waits in memory; return whether reading may go on.

        A pause ends at half of the limits, so that it is not entered again at once.
        """
        if self.since is None:
            if events >= self.max_events or size >= self.max_bytes:
                self.since = now
        elif events <= self.max_events // 2 and size <= self.max_bytes // 2:
            self.since = None
        return self.since is None

    def close_at(self) -> float:
        """Return when a pause has become too long for an open connection."""
        if self.since is None:
            raise ValueError("reading is not held up")
        return self.since + self.patience
