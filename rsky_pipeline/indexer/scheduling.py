"""Which batch is applied next: live events and labels first, history with a guaranteed share.

The readers of the streams put batches into `BatchQueue`, one a stream; the applying task takes them
by priority. `FairScheduler` keeps the account of history's share, so that history never stands
still and nothing that waits for it can wait for ever.
"""

from collections.abc import Callable, Sequence

import trio

from rsky_pipeline.indexer.core.batch import EntryBatch

# A reader that has more is back with its next batch sooner than this, or cannot read at present.
PATIENCE_SECONDS = 0.5
_HALF_LIFE = 30.0  # seconds after which past work counts half, in the share that is shown
_MOST_CREDIT = 5.0  # seconds of work that history can be owed


class FairScheduler:
    """Keeps the account of one applier. `guaranteed` is history's part of the time, 0 to 1."""

    def __init__(self, guaranteed: float, clock: Callable[[], float]) -> None:
        self._guaranteed = guaranteed
        self._clock = clock
        self._credit = 0.0  # seconds of work that history is owed; below 0 it has had too much
        self._seconds = {False: 0.0, True: 0.0}
        self._counted_at = clock()

    def worked(self, seconds: float, *, history: bool, behind: bool) -> None:
        """Note a batch; with `behind`, live events waited for the same time."""
        self._decay()
        self._seconds[history] += seconds
        if not behind:
            self._credit = 0.0
        elif history:
            self._credit -= seconds * (1 - self._guaranteed)
        else:
            self._credit = min(_MOST_CREDIT, self._credit + seconds * self._guaranteed)

    @property
    def history_is_owed(self) -> bool:
        """Whether it is history's turn although live events wait."""
        return self._credit >= 0

    @property
    def share(self) -> float:
        """Return which part of the recent work was history's, 0 to 1."""
        self._decay()
        total = sum(self._seconds.values())
        return self._seconds[True] / total if total > 1e-6 else 0.0

    def _decay(self) -> None:
        now = self._clock()
        factor = 0.5 ** ((now - self._counted_at) / _HALF_LIFE)
        self._counted_at = now
        for history in self._seconds:
            self._seconds[history] *= factor


class BatchQueue:
    """Hands batches from the readers to the applier.

    Streams that are `first` take turns with each other and go before history. While one of them
    has more than it can be rid of, history gets only the time that the scheduler owes it.
    """

    def __init__(self, first: Sequence[str], history: str, scheduler: FairScheduler) -> None:
        self._first = list(first)
        self._history = history
        self._scheduler = scheduler
        self._batches: dict[str, EntryBatch] = {}
        self._behind: set[str] = set()
        self._changed = trio.Condition()
        self._closed = False

    @property
    def behind(self) -> bool:
        """Whether live events wait: a reader filled its last batch, so there are more of them."""
        return bool(self._behind)

    async def put(self, batch: EntryBatch) -> None:
        """Add a batch as soon as the one before of its stream is taken."""
        async with self._changed:
            if batch.more and batch.stream in self._first:
                self._behind.add(batch.stream)
            else:
                self._behind.discard(batch.stream)
            while batch.stream in self._batches:
                await self._changed.wait()
            self._batches[batch.stream] = batch
            self._changed.notify_all()

    async def caught_up(self, stream: str) -> None:
        """Note that a reader found nothing to read."""
        async with self._changed:
            self._behind.discard(stream)
            self._changed.notify_all()

    async def take(self) -> EntryBatch | None:
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
        if waiting and self.behind and self._scheduler.history_is_owed:
            return self._history
        for stream in self._first:
            if stream in self._batches:
                self._first.remove(stream)
                self._first.append(stream)
                return stream
        # The next live batch is being read: history must not slip in between every two of them.
        return None if not waiting or (self.behind and patient) else self._history
