"""Batches that wait to be applied: one a stream, taken by priority."""

from collections.abc import Sequence

import trio

from rsky_pipeline.indexer.batch import Batch
from rsky_pipeline.indexer.shares import Shares

# A reader that has more is back with its next batch sooner than this, or cannot read at present.
PATIENCE_SECONDS = 0.5


class Shelf:
    """Hands batches from the readers to the applier.

    Streams that are `first` take turns with each other and go before history. While one of them
    has more than it can be rid of, history gets only what `shares` owes it.
    """

    def __init__(self, first: Sequence[str], history: str, shares: Shares) -> None:
        self._first = list(first)
        self._history = history
        self._shares = shares
        self._batches: dict[str, Batch] = {}
        self._behind: set[str] = set()
        self._changed = trio.Condition()
        self._closed = False

    @property
    def behind(self) -> bool:
        """Whether live events wait: a reader filled its last batch, so there are more of them."""
        return bool(self._behind)

    async def put(self, batch: Batch) -> None:
        """Lay a batch down as soon as the one before of its stream is taken."""
        async with self._changed:
            self._note(batch)
            while batch.stream in self._batches:
                await self._changed.wait()
            self._batches[batch.stream] = batch
            self._changed.notify_all()

    async def nothing(self, stream: str) -> None:
        """Note that a reader found nothing to read."""
        async with self._changed:
            self._behind.discard(stream)
            self._changed.notify_all()

    async def take(self) -> Batch | None:
        """Return the next batch, or None when there will be no more."""
        patient = True
        async with self._changed:
            while True:
                stream = self._choose(patient)
                if stream is not None:
                    self._changed.notify_all()
                    return self._batches.pop(stream)
                if self._closed and not self._batches:
                    return None
                with trio.move_on_after(PATIENCE_SECONDS) as waiting:
                    await self._changed.wait()
                patient = not waiting.cancelled_caught

    async def close(self) -> None:
        """No more batches will come."""
        async with self._changed:
            self._closed = True
            self._behind.clear()
            self._changed.notify_all()

    def _choose(self, patient: bool) -> str | None:
        waiting = self._history in self._batches
        if waiting and self.behind and self._shares.history_is_owed:
            return self._history
        for stream in self._first:
            if stream in self._batches:
                self._first.remove(stream)
                self._first.append(stream)
                return stream
        # The next live batch is being read: history must not slip in between every two of them.
        return None if not waiting or (self.behind and patient) else self._history

    def _note(self, batch: Batch) -> None:
        if batch.stream not in self._first:
            return
        if batch.more:
            self._behind.add(batch.stream)
        else:
            self._behind.discard(batch.stream)
