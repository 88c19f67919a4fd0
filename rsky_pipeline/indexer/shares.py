"""How much of the database's time history may have while live events wait. Pure.

History always gets a small guaranteed share, so that it never stands still and nothing that waits
for it can wait for ever; beyond it, live events and labels come first.
"""

from collections.abc import Callable

_HALF_LIFE = 30.0  # seconds after which past work counts half, in the share that is shown
_MOST_CREDIT = 5.0  # seconds of work that history can be owed


class Shares:
    """Keeps the account of one applier. `guaranteed` is history's part of the time, 0 to 1."""

    def __init__(self, guaranteed: float, clock: Callable[[], float]) -> None:
        self._guaranteed = guaranteed
        self._clock = clock
        self._credit = 0.0  # seconds of work that history is owed; below 0 it has had too much
        self._seconds = {False: 0.0, True: 0.0}
        self._counted_at = clock()

    def worked(self, seconds: float, *, history: bool, behind: bool) -> None:
        """Note a batch; `behind` says whether live events waited for the same time."""
        self._decay()
        self._seconds[history] += seconds
        if not behind:
            self._credit = 0.0
        elif history:
            self._credit -= seconds * (1 - self._guaranteed)
        else:
            self._credit = min(_MOST_CREDIT, self._credit + seconds * self._guaranteed)

    @property
    def history_is_owed(self) -> bool:
        """Whether it is history's turn although live events wait."""
        return self._credit >= 0

    @property
    def share(self) -> float:
        """Return which part of the recent work was history's, 0 to 1."""
        self._decay()
        total = sum(self._seconds.values())
        return self._seconds[True] / total if total > 1e-6 else 0.0

    def _decay(self) -> None:
        now = self._clock()
        factor = 0.5 ** ((now - self._counted_at) / _HALF_LIFE)
        self._counted_at = now
        for history in self._seconds:
            self._seconds[history] *= factor
