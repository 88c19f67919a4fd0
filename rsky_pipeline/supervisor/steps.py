"""The steps of a start or stop, told to the log and to everybody who follows."""

import logging
from collections.abc import AsyncIterator

import trio

log = logging.getLogger("rsky_pipeline.supervisor")


class Steps:
    """A growing list of lines; followers see those from the moment they begin on."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._changed = trio.Event()
        self.finished = False

    def tell(self, line: str, *, bad: bool = False) -> None:
        """Add a line."""
        log.log(logging.WARNING if bad else logging.INFO, line)
        self._lines.append(line)
        self._wake()

    def finish(self) -> None:
        """Let every follower end."""
        self.finished = True
        self._wake()

    async def follow(self) -> AsyncIterator[str]:
        """Yield lines as they are told, until `finish`."""
        position = len(self._lines)
        while True:
            while position < len(self._lines):
                yield self._lines[position]
                position += 1
            if self.finished:
                return
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
