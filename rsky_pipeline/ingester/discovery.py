"""Repos that appear in live events and that nothing is known of. Pure; times are monotonic seconds.

A repo whose first commit was not seen is queued to be fetched as a whole, once: its state is then
kept as any other. After a start with an empty store nearly every repo is new, and the listing finds
them as well; so there is a limit on how fast they are queued. A repo that comes above it is not
remembered, and found at a later commit. Nor is one that comes while the stream that they are queued
in is at its high-water mark: live events must not wait for it.
"""

BURST = 300


class Discovery:
    """How many repos may be queued now; none where repos are not wanted at all."""

    def __init__(self, per_minute: int, high_water_mark: int = 0) -> None:
        """A mark of 0 stands for none."""
        self._rate = per_minute / 60.0
        self._tokens = float(min(BURST, per_minute))
        self._at = 0.0
        self._mark = high_water_mark
        self._length = 0  # of the stream, as far as it is known

    @property
    def enabled(self) -> bool:
        """Whether repos are discovered at all."""
        return self._rate > 0

    def admits(self, now: float) -> bool:
        """Take note that a repo wants to be queued; tell whether it may."""
        self._tokens = min(float(BURST), self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1 or (self._mark and self._length >= self._mark):
            return False
        self._tokens -= 1
        self._length += 1
        return True

    def observe_length(self, length: int) -> None:
        """Take note of the real length of the stream."""
        self._length = length
