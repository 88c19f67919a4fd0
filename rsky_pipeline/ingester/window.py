"""Frames whose proof is still being looked up, kept so that all leave in the order they came. Pure.

Order over the whole stream is more than order for each account, and it is what makes the cursor
simple: everything at or below the last frame that left is either written or waiting to be.
"""

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

Result = TypeVar("Result")


@dataclass(slots=True)
class Slot(Generic[Result]):
    """The place of one frame; empty until it is known what may be written of it."""

    size: int
    result: Result | None = None


class Window(Generic[Result]):
    """A bounded number of slots."""

    def __init__(self, max_frames: int = 2_000, max_bytes: int = 32 * 1024 * 1024) -> None:
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._slots: deque[Slot[Result]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def full(self) -> bool:
        """Whether no frame should be added until some have left."""
        return len(self._slots) >= self._max_frames or self._bytes >= self._max_bytes

    def add(self, size: int, result: Result | None = None) -> Slot[Result]:
        """Add a frame behind all others; without a result it holds them up until it has one."""
        slot = Slot(size, result)
        self._slots.append(slot)
        self._bytes += size
        return slot

    def take_ready(self) -> list[Result]:
        """Remove and return the frames before the first one without a result."""
        ready: list[Result] = []
        while self._slots and self._slots[0].result is not None:
            slot = self._slots.popleft()
            self._bytes -= slot.size
            if slot.result is not None:
                ready.append(slot.result)
        return ready
