"""The createdAt of records: nearly always now, sometimes as odd as on the real network."""

import random

from rsky_pipeline.demo.simulator.clock import MICROS, TimeText

_FIXED = ("2999-12-31T23:59:59.999Z", "0001-01-01T00:00:00.000Z", "1970-01-01T00:00:00.000Z")
_HOUR = 3_600 * MICROS


class Moments:
    """Writes times; the same random numbers give the same oddities."""

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose
        self._text = TimeText()

    def created(self, now: int) -> str:
        """Return a createdAt for something made now; always valid."""
        if self._choose.random() > 0.015:
            return self._text(now)
        match self._choose.randrange(6):
            case 0:
                return self._text(now)[:-5] + "Z"
            case 1:
                return f"{self._text(now)[:-1]}{self._choose.randrange(1_000_000):06d}Z"
            case 2:
                return f"{self._text(now + 9 * _HOUR)[:-1]}+09:00"
            case 3:
                return f"{self._text(now - 7 * _HOUR)[:-5]}-07:00"
            case 4:
                return self._text(now + self._choose.randrange(48) * _HOUR)
            case _:
                return self._choose.choice(_FIXED)
