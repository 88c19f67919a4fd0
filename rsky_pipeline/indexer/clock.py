"""The present, as it is written into columns."""

import time
from datetime import UTC, datetime

from rsky_pipeline.atproto.datetimes import format_utc


def now_text() -> str:
    """Return the present in the normal form."""
    return format_utc(datetime.now(UTC))


class CoarseClock:
    """The present in the normal form, up to a second late: for what is asked with every event."""

    def __init__(self) -> None:
        self._text = ""
        self._until = 0.0

    def __call__(self) -> str:
        """Return the present."""
        now = time.monotonic()
        if now >= self._until:
            self._text, self._until = now_text(), now + 1.0
        return self._text
