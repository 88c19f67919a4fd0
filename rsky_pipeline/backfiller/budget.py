"""The bytes that all repos in flight may hold together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Budget:
    """Grants bytes in the order in which they are asked for, so that a large request gets in."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._turn = trio.Lock()
        self._freed = trio.Event()

    @asynccontextmanager
    async def grant(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes (all of the budget if it is larger) for the length of the block."""
        size = min(size, self.total)
        async with self._turn:
            while self.used + size > self.total:
                await self._freed.wait()
            self.used += size
        try:
            yield
        finally:
            self.used -= size
            self._freed.set()
            self._freed = trio.Event()
