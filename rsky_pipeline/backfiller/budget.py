"""What all repos in flight may use together: bytes in memory, bytes on disk, downloads."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Budget:
    """Bytes that are asked for in order, so that a large request gets in, and given back."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._turn = trio.Lock()
        self._freed = trio.Event()

    async def admit(self, size: int) -> int:
        """Wait for `size` bytes (all of the budget if it is larger); return how many were taken."""
        size = min(size, self.total)
        async with self._turn:
            while self.used + size > self.total:
                await self._freed.wait()
            self.used += size
        return size

    def grow(self, size: int) -> bool:
        """Take more bytes at once; False, and nothing is taken, where there are not as many."""
        if self.used + size > self.total:
            return False
        self.used += size
        return True

    def give_back(self, size: int) -> None:
        """Return bytes."""
        self.used -= size
        self._freed.set()
        self._freed = trio.Event()


class Slot:
    """A place among the downloads; leaving it early lets another download begin."""

    def __init__(self, slots: "Slots") -> None:
        self._slots = slots
        self.is_aside = False

    def step_aside(self) -> None:
        """Make room for others, if there is room for one more beside the places."""
        if not self.is_aside:
            self.is_aside = self._slots.let_aside(self)


class Slots:
    """How many downloads run at once. Slow ones step aside, so that they hold up nobody."""

    def __init__(self, total: int, aside: int) -> None:
        self._limiter = trio.CapacityLimiter(total)
        self._aside_most = aside
        self._running = 0
        self.aside = 0

    @property
    def busy(self) -> int:
        """How many downloads run, those aside included."""
        return self._running + self.aside

    @asynccontextmanager
    async def take(self) -> AsyncIterator[Slot]:
        """Wait for a place and hold it for the length of the block."""
        slot = Slot(self)
        await self._limiter.acquire_on_behalf_of(slot)
        self._running += 1
        try:
            yield slot
        finally:
            if slot.is_aside:
                self.aside -= 1
            else:
                self._running -= 1
                self._limiter.release_on_behalf_of(slot)

    def let_aside(self, slot: Slot) -> bool:
        """Give the place of a slow download to another; False where too many are aside already."""
        if self.aside >= self._aside_most:
            return False
        self.aside += 1
        self._running -= 1
        self._limiter.release_on_behalf_of(slot)
        return True
