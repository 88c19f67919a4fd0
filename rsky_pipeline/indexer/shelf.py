"""Batches that wait to be applied: one a stream, taken by priority."""

from collections.abc import Sequence

import trio

from rsky_pipeline.indexer.batch import Batch


class Shelf:
    """Hands batches from the readers to the applier.

    `order` lists streams in groups: a batch of an earlier group is always taken first, within a
    group they take turns.
    """

    def __init__(self, order: Sequence[Sequence[str]]) -> None:
        self._order = [list(group) for group in order]
        self._batches: dict[str, Batch] = {}
        self._changed = trio.Condition()
        self._closed = False

    async def put(self, batch: Batch) -> None:
        """Lay a batch down as soon as the one before of its stream is taken."""
        async with self._changed:
            while batch.stream in self._batches:
                await self._changed.wait()
            self._batches[batch.stream] = batch
            self._changed.notify_all()

    async def take(self) -> Batch | None:
        """Return the next batch, or None when there will be no more."""
        async with self._changed:
            while True:
                for group in self._order:
                    for stream in group:
                        if stream in self._batches:
                            group.remove(stream)
                            group.append(stream)
                            self._changed.notify_all()
                            return self._batches.pop(stream)
                if self._closed:
                    return None
                await self._changed.wait()

    async def close(self) -> None:
        """No more batches will come."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()
