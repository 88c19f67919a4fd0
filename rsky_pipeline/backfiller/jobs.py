"""The streams of repos as one queue: which entries are taken next, and how each of them ends."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from rsky_pipeline.backfiller.coalescer import Coalescer
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.consumer import Consumer, Delivery
from rsky_pipeline.streams.names import (
    REPO_BACKFILL,
    REPO_BACKFILL_HIGH,
    REPO_BACKFILL_LOW,
    REPO_STREAMS,
)
from rsky_pipeline.streams.repo_job import REPO_FIELD, RepoJob, encode_repo_job
from rsky_pipeline.streams.waiting import count_waiting, wake

_log = logging.getLogger(__name__)
WEIGHTS = {REPO_BACKFILL_HIGH: 12, REPO_BACKFILL: 3, REPO_BACKFILL_LOW: 1}
MOST_ENDINGS = 100  # entries that end in one call
ALONE_SECONDS = 5.0  # that an entry which may be deadly is alone before others are taken
Item = TypeVar("Item")
Ending = Callable[[Store], object]


class JobQueue:
    """Takes entries of all streams of repos, and ends them; one connection for each of the two."""

    def __init__(
        self, reading: Link[Store], ending: Link[Store], settings: Settings, name: str,
        metrics: BackfillerMetrics,
    ) -> None:  # fmt: skip
        """`name` is that of this worker as a consumer."""
        self._reading = reading
        self._ending = ending
        self._metrics = metrics
        self._consumers = {
            stream: Consumer(
                stream, settings.backfiller_group, name,
                reclaim_idle_ms=settings.claim_idle_seconds * 1000, alone_seconds=ALONE_SECONDS,
            )
            for stream in REPO_STREAMS
        }  # fmt: skip
        self._endings = Coalescer(self._end_all, most=MOST_ENDINGS)
        self._weighted = WeightedReader(WEIGHTS)

    @property
    def held(self) -> int:
        """How many entries this worker holds."""
        return sum(len(consumer.held) for consumer in self._consumers.values())

    @property
    def taken_up(self) -> bool:
        """Whether all entries that an earlier life of this consumer left pending were taken."""
        return all(consumer.taken_up for consumer in self._consumers.values())

    async def take(self, count: int) -> list[Delivery] | None:
        """Return up to `count` entries, of every stream its share; None where Redis failed.

        Entries that were left pending come first, a stream at a time: where one crashes its worker,
        no new entry may be taken beside it.
        """
        for stream, consumer in self._consumers.items():
            if not consumer.taken_up:
                return await self._take_from(stream, count)
        return await self._weighted.take(count, self._take_from)

    async def _take_from(self, stream: str, count: int) -> list[Delivery] | None:
        consumer = self._consumers[stream]
        reclaimed = consumer.reclaimed
        taken = await self._reading.attempt(partial(consumer.take, count=count))
        self._metrics.claimed.inc(consumer.reclaimed - reclaimed)
        return None if taken is None else taken.deliveries

    async def finish(self, delivery: Delivery) -> None:
        """Acknowledge an entry. Like all that end one, it waits for Redis, and may be repeated."""
        consumer = self._consumers[delivery.stream]
        await self._endings.call(partial(consumer.acknowledge, ids=[delivery.id]))

    async def postpone(self, delivery: Delivery, seconds: float, comes_back: RepoJob) -> None:
        """Let an entry wait outside of its stream, over restarts."""
        end = partial(
            self._consumers[delivery.stream].postpone, delivery=delivery, seconds=seconds,
            field=REPO_FIELD, payload=encode_repo_job(comes_back),
        )  # fmt: skip
        await self._endings.call(end)

    async def dead_letter(self, delivery: Delivery, reason: str, error: str, attempts: int) -> None:
        """Move an entry into the dead letters of its stream."""
        end = partial(
            self._consumers[delivery.stream].dead_letter, delivery=delivery, reason=reason,
            error=error, attempts=attempts,
        )  # fmt: skip
        await self._endings.call(end)
        self._metrics.dead_lettered.inc()
        extra = {"stream": delivery.stream, "entry": delivery.id, "reason": reason, "error": error}
        _log.warning("repo job moved to the dead letters", extra=extra)

    def release(self, delivery: Delivery) -> None:
        """Stop holding an entry: it stays pending and is taken up again when it has been idle.

        After too many deliveries it becomes a dead letter.
        """
        self._consumers[delivery.stream].release([delivery.id])

    async def forgive(self) -> None:
        """Let the deliveries of held entries count from one: a stop is no fault of an entry."""
        for consumer in self._consumers.values():
            await self._ending.attempt(partial(consumer.hold, forgive=True))

    async def maintain(self) -> None:
        """Keep held entries from being taken over, and remove finished ones and names of the gone.

        A repo may take longer than `claim_idle_seconds`, after which others would take it up.
        """
        for consumer in self._consumers.values():
            await self._ending.attempt(consumer.hold)
            await self._ending.attempt(consumer.clean)

    async def wake(self) -> int | None:
        """Put what has waited long enough back into its stream; return how many still wait."""

        def wake_and_count(store: Store) -> tuple[int, int]:
            return wake(store, REPO_STREAMS), count_waiting(store)

        counts = await self._ending.attempt(wake_and_count)
        if counts is None:
            return None
        self._metrics.woken.inc(counts[0])
        return counts[1]

    async def _end_all(self, endings: Sequence[Ending]) -> Sequence[None]:
        def end_all(store: Store) -> None:
            for end in endings:
                end(store)

        await self._ending.retry(end_all)
        return [None] * len(endings)


class WeightedReader:
    """Divides every take by weights; what a stream does not need goes to the most urgent others.

    None is starved. The fractions of small takes are carried over, so that a weight holds in the
    long run.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = dict(weights)  # the most urgent first
        self._carried = dict.fromkeys(self._weights, 0.0)

    async def take(
        self, count: int, read: Callable[[str, int], Awaitable[Sequence[Item] | None]]
    ) -> list[Item] | None:
        """Return up to `count` entries; `read` takes up to so many from a stream at once.

        None if `read` returned None and nothing was read before that.
        """
        total = sum(self._weights.values())
        taken: list[Item] = []
        hungry: list[str] = []
        for stream, weight in self._weights.items():
            due = self._carried[stream] + count * weight / total
            wanted = min(int(due), count - len(taken))
            self._carried[stream] = min(due - wanted, 1.0)
            page = await read(stream, wanted) if wanted else ()
            if page is None:
                return taken or None
            taken += page
            if len(page) == wanted:
                hungry.append(stream)
        for stream in hungry:
            if len(taken) < count:
                taken += await read(stream, count - len(taken)) or ()
        return taken
