"""A line every few seconds about a long operation, for the person at the terminal."""

import time

from rsky_pipeline.cli.output import say

EVERY_SECONDS = 2.0


class Progress:
    """Says what it is told, but no more often than every two seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + EVERY_SECONDS

    def __call__(self, message: str) -> None:
        """Say it if it is time."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + EVERY_SECONDS
            say(message)
