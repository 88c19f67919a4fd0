"""How many entries to take from each stream of repos, so that none is starved."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Shares:
    """Divides every take by weights; what a stream does not need goes to the most urgent others.

    The fractions of small takes are carried over, so that a weight holds in the long run.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = dict(weights)  # the most urgent first
        self._carried = dict.fromkeys(self._weights, 0.0)

    async def take(
        self, count: int, read: Callable[[str, int], Awaitable[Sequence[Item]]]
    ) -> list[Item]:
        """Return up to `count` entries; `read` takes up to so many from a stream at once."""
        total = sum(self._weights.values())
        taken: list[Item] = []
        hungry: list[str] = []
        for stream, weight in self._weights.items():
            due = self._carried[stream] + count * weight / total
            wanted = min(int(due), count - len(taken))
            self._carried[stream] = min(due - wanted, 1.0)
            page = await read(stream, wanted) if wanted else ()
            taken += page
            if len(page) == wanted:
                hungry.append(stream)
        for stream in hungry:
            if len(taken) < count:
                taken += await read(stream, count - len(taken))
        return taken
