"""The repo streams as one queue: which entries are read next, and how each one is finished."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.health.rules import RuleVerdict
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.runtime.coalescer import Coalescer
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.consumer import Consumer, Delivery, Taken, Trial
from rsky_pipeline.streams.lag import StreamReport
from rsky_pipeline.streams.marks import report_loss
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
BATCH_ENDINGS = 100
ALONE_SECONDS = 5.0  # an entry suspected of crashing workers runs alone for so long
Item = TypeVar("Item")
Ending = Callable[[Store], object]  # returns whether it moved its entry
_InHistory = tuple[Ending, str | None]  # an ending, and the history in which alone it is right


class JobQueue:
    """Reads and finishes entries of all repo streams, on one connection for each of the two."""

    def __init__(
        self, reading: Link[Store], ending: Link[Store], settings: Settings, name: str,
        metrics: BackfillerMetrics, *, blameless: bool = False,
    ) -> None:  # fmt: skip
        """`name` is this worker's consumer name in the consumer groups; for `blameless` see
        `Trial`."""
        trial = Trial(blameless)
        self._hosts = [endpoint.key for endpoint in settings.relays]
        self._reading = reading
        self._ending = ending
        self._metrics = metrics
        self._consumers = {
            stream: Consumer(
                stream, settings.backfiller_group, name,
                reclaim_idle_ms=settings.claim_idle_seconds * 1000, alone_seconds=ALONE_SECONDS,
                trial=trial,
            )
            for stream in REPO_STREAMS
        }  # fmt: skip
        self._endings: Coalescer[_InHistory, bool | None] = Coalescer(
            lambda endings: ending.retry(partial(_end_all, endings, [False] * len(endings))),
            limit=BATCH_ENDINGS,
        )
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
        """Return up to `count` entries, divided by stream weight; None if Redis failed.

        Entries left pending come first, one stream at a time. One of them may crash the worker, and
        new entries taken beside it would then count a delivery that is not their fault.
        """
        for stream, consumer in self._consumers.items():
            if not consumer.taken_up:
                return await self._take_from(stream, count)
        return await self._weighted.take(count, self._take_from)

    async def _take_from(self, stream: str, count: int) -> list[Delivery] | None:
        consumer = self._consumers[stream]
        reclaimed = consumer.reclaimed

        def take(store: Store) -> Taken:
            report_loss(store, consumer, self._hosts)
            return consumer.take(store, count)

        taken = await self._reading.attempt(take)
        self._metrics.claimed.inc(consumer.reclaimed - reclaimed)
        return None if taken is None else taken.deliveries

    @property
    def verdicts(self) -> list[RuleVerdict]:
        """What the consumers of the streams find."""
        return [each for one in self._consumers.values() for each in one.verdicts]

    def observe(self, reports: Iterable[StreamReport]) -> None:
        """Take a look at the streams, see `Consumer.observe`."""
        for report in reports:
            if report.name in self._consumers:
                self._consumers[report.name].observe(report)

    async def finish(self, delivery: Delivery, history: str | None = None) -> bool:
        """Acknowledge an entry. Retries until Redis answers, so it may be executed twice.

        `history` is the one in which the events of the repo were queued (`Store.history`). Returns
        False, with the entry still held, if another one has begun: they may be lost.
        """
        consumer = self._consumers[delivery.stream]
        end = partial(consumer.acknowledge, ids=[delivery.id])
        return await self._endings.call((end, history)) is not None

    async def postpone(
        self, delivery: Delivery, seconds: float, comes_back: RepoJob, history: str | None = None
    ) -> bool:
        """Replace an entry by one due in `seconds`; it waits in Redis, so it survives restarts.

        For `history` and the result see `finish`.
        """
        end = partial(
            self._consumers[delivery.stream].postpone, delivery=delivery, seconds=seconds,
            field=REPO_FIELD, payload=encode_repo_job(comes_back),
        )  # fmt: skip
        return await self._endings.call((end, history)) is not None

    async def dead_letter(self, delivery: Delivery, reason: str, error: str, attempts: int) -> None:
        """Move an entry into the dead letters of its stream; it stays pending if Redis refuses."""
        end = partial(
            self._consumers[delivery.stream].dead_letter, delivery=delivery, reason=reason,
            error=error, attempts=attempts,
        )  # fmt: skip
        if not await self._endings.call((end, None)):
            return
        self._metrics.dead_lettered.inc()
        extra = {"stream": delivery.stream, "entry": delivery.id, "reason": reason, "error": error}
        _log.warning("dead-lettered repo job", extra=extra)

    def release(self, delivery: Delivery) -> None:
        """Stop holding an entry: it stays pending until it is reclaimed as idle.

        If its workers end while they try it alone, it is dead-lettered.
        """
        self._consumers[delivery.stream].release([delivery.id])

    async def forgive(self) -> None:
        """Reset the delivery counts of held entries: an orderly stop is not their fault."""

        def forgive_all(store: Store) -> None:
            for consumer in self._consumers.values():
                consumer.hold(store, forgive=True)

        await self._ending.attempt(forgive_all)

    async def maintain(self) -> None:
        """Renew held entries, trim finished ones, and remove consumers that are gone.

        A repo may take longer than `claim_idle_seconds`; without renewal another worker would
        reclaim its entry and fetch the repo a second time.
        """

        def hold_and_clean(store: Store) -> None:
            for consumer in self._consumers.values():
                consumer.hold(store)
            for consumer in self._consumers.values():
                consumer.clean(store)

        await self._ending.attempt(hold_and_clean)

    async def wake(self) -> int | None:
        """Move due postponed entries back to their streams; returns the number still waiting."""

        def wake_and_count(store: Store) -> tuple[int, int]:
            return wake(store, REPO_STREAMS), count_waiting(store)

        counts = await self._ending.attempt(wake_and_count)
        if counts is None:
            return None
        self._metrics.woken.inc(counts[0])
        return counts[1]


class WeightedReader:
    """Divides each take among streams by weight; unused shares go to the most urgent streams.

    No stream starves. For example, with weights 7, 2, 1 a take of 3 gives the last stream 0.3
    entries: fractions are carried over to later takes, so that weights hold in the long run.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = dict(weights)  # the most urgent first
        self._carried = dict.fromkeys(self._weights, 0.0)

    async def take(
        self, count: int, read: Callable[[str, int], Awaitable[Sequence[Item] | None]]
    ) -> list[Item] | None:
        """Return up to `count` entries, read with `read(stream, most)`.

        Returns None if `read` failed (returned None) before anything was read.
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


def _end_all(endings: Sequence[_InHistory], moved: list[bool], store: Store) -> list[bool | None]:
    """End entries; `moved` keeps the results of earlier tries, since a repeated ending is False.

    None is the result of those that are right in another history only.
    """
    present = store.history() if any(history is not None for _, history in endings) else None
    for number, (end, history) in enumerate(endings):
        if history in {None, present}:
            moved[number] = bool(end(store)) or moved[number]
    return [
        now if history in {None, present} else None
        for now, (_, history) in zip(moved, endings, strict=True)
    ]
