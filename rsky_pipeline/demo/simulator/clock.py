"""Time in a simulated network: strictly increasing microseconds and their text forms."""

import time
from collections.abc import Callable

MICROS = 1_000_000
DAY = 86_400 * MICROS


def wall_micros() -> int:
    """Return the machine's time in microseconds since 1970."""
    return time.time_ns() // 1_000


class Clock:
    """Microseconds since 1970 that never repeat, so that every rev and record key is new."""

    def __init__(self, source: Callable[[], int] = wall_micros) -> None:
        self._source = source
        self._last = 0

    def now(self) -> int:
        """Return the time, at least one microsecond after any time returned before."""
        self._last = max(self._source(), self._last + 1)
        return self._last


def stepping_clock(start: int, step: int) -> Clock:
    """Return a clock that moves `step` microseconds with each reading, whatever the time is.

    Two networks with the same seed and the same stepping clock are equal byte for byte.
    """
    current = start - step

    def advance() -> int:
        nonlocal current
        current += step
        return current

    return Clock(advance)


class TimeText:
    """Formats microseconds as `YYYY-MM-DDTHH:mm:ss.sssZ`; remembers the second it formatted."""

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""

    def __call__(self, micros: int) -> str:
        """Return the text of a time, cut to milliseconds."""
        second, rest = divmod(micros, MICROS)
        if second != self._second:
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._prefix}.{rest // 1_000:03d}Z"
