"""The worker's hold on the streams of repos: taking entries, and what becomes of each."""

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from rsky_pipeline.backfiller.gather import Gather
from rsky_pipeline.backfiller.shares import Shares
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.runtime.logging import Throttled
from rsky_pipeline.runtime.threads import StoreThread
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.consumer import (
    SUSPICIOUS_DELIVERIES,
    Claimed,
    Delivery,
    GroupReader,
    trim,
)
from rsky_pipeline.streams.dead_letters import dead_letter
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.event import MalformedEvent
from rsky_pipeline.streams.names import (
    REPO_BACKFILL,
    REPO_BACKFILL_HIGH,
    REPO_BACKFILL_LOW,
    REPO_STREAMS,
)
from rsky_pipeline.streams.repo_job import REPO_FIELD, RepoJob, decode_repo_job, encode_repo_job
from rsky_pipeline.streams.waiting import count_waiting, postpone, wake

log = logging.getLogger(__name__)
PAGE = 100
IDLE_SECONDS = 0.2  # between two looks at streams that were empty
WEIGHTS = {REPO_BACKFILL_HIGH: 12, REPO_BACKFILL: 3, REPO_BACKFILL_LOW: 1}
Action = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Job:
    """An entry that this worker holds."""

    delivery: Delivery
    repo: RepoJob

    @property
    def suspicious(self) -> bool:
        """Whether it was delivered so often that it may be what crashed the worker."""
        return self.delivery.deliveries > SUSPICIOUS_DELIVERIES


class Jobs:
    """Reads and settles the entries of all streams of repos, on one connection for each."""

    def __init__(
        self, reading: Store, settling: Store, settings: Settings, consumer: str,
        metrics: BackfillerMetrics,
    ) -> None:  # fmt: skip
        group = settings.backfiller_group
        self._readers = {name: GroupReader(reading, name, group, consumer) for name in REPO_STREAMS}
        self._settlers = {
            name: GroupReader(settling, name, group, consumer) for name in REPO_STREAMS
        }
        self._store = settling
        self._settings = settings
        self._metrics = metrics
        self._reading = StoreThread()
        self._settling = StoreThread()
        self._held: dict[str, set[str]] = {name: set() for name in REPO_STREAMS}
        self._accepted: list[Job] = []
        self._settled = Gather(self._settle_all, most=100)
        self._shares = Shares(WEIGHTS)
        self._quiet = Throttled()

    @property
    def held(self) -> int:
        """How many entries this worker holds."""
        return sum(len(ids) for ids in self._held.values())

    async def recover(self) -> AsyncGenerator[Job, None]:
        """Yield the entries that an earlier life of this consumer left pending.

        One at a time, since reading counts as a delivery: those behind a deadly one must not
        become suspicious with it.
        """
        for reader in self._readers.values():
            await self._reading.call(reader.ensure)
        for reader in self._readers.values():
            after = "0"
            while page := await self._reading.call(reader.own_pending, after, 1):
                after = page[-1].id
                await self._accept(page)
                for job in self.taken():
                    yield job

    async def release(self) -> None:
        """Leave what is held to the next life of this consumer; it is not to blame for the stop."""
        for stream, settler in self._settlers.items():
            ids = tuple(self._held[stream])
            await self._settling.call(partial(settler.hold, ids, forgive=True))

    def taken(self) -> list[Job]:
        """Return the jobs that were taken since the last call.

        They are kept here, since a call that took some may fail on a later stream.
        """
        jobs, self._accepted = self._accepted, []
        return jobs

    async def claim(self) -> None:
        """Take over entries of consumers that are gone, and keep others from taking ours."""
        idle_ms = self._settings.claim_idle_seconds * 1000
        for stream, reader in self._readers.items():
            await self._reading.call(reader.hold, tuple(self._held[stream]))
            await self._claim_from(stream, partial(reader.claim_idle, idle_ms))
            await self._settling.call(trim, self._store, stream)

    async def find_lost(self) -> None:
        """Take what this consumer was given in replies that never came."""
        for stream, reader in self._readers.items():
            await self._claim_from(stream, partial(reader.claim_idle, 0, only_own=True))

    async def read(self, count: int) -> None:
        """Take new entries, of every stream its share; waits a moment if there are none."""
        if not await self._shares.take(count, self._read_from):
            await trio.sleep(IDLE_SECONDS)

    async def _claim_from(self, stream: str, claim: Callable[..., Claimed]) -> None:
        start = "0-0"
        while True:
            held = frozenset(self._held[stream])  # copied: the call runs in a thread
            page = await self._reading.call(claim, start, PAGE, held)
            await self._accept(page.deliveries)
            self._metrics.claimed.inc(len(page.deliveries))
            start = page.next_start
            if start == "0-0":
                return

    async def _read_from(self, stream: str, count: int) -> list[Job]:
        page = await self._reading.call(self._readers[stream].read_new, count, 0)
        return await self._accept(page)

    async def finish(self, job: Job) -> None:
        """Acknowledge an entry. Waits until the store has done it."""
        await self._acknowledge(job.delivery)

    def let_go(self, job: Job) -> None:
        """Stop holding an entry: it stays pending, is taken over again when it has been idle, and
        becomes a dead letter after too many deliveries."""
        self._held[job.delivery.stream].discard(job.delivery.id)

    async def postpone(self, job: Job, seconds: float, comes_back: RepoJob) -> None:
        """Let an entry wait outside of its stream, over restarts; waits for the store."""
        payload = encode_repo_job(comes_back)
        settler = self._settlers[job.delivery.stream]
        move = partial(
            postpone, self._store, settler, job.delivery,
            seconds=seconds, field=REPO_FIELD, payload=payload,
        )  # fmt: skip
        await self._settle(move)
        self._held[job.delivery.stream].discard(job.delivery.id)

    async def wake(self) -> int:
        """Put what has waited long enough back into its stream; return how many entries."""
        return await self._settling.call(wake, self._store, REPO_STREAMS)

    async def count_waiting(self) -> int:
        """Return how many entries wait outside of their streams."""
        return await self._settling.call(count_waiting, self._store)

    async def bury(self, job: Job, reason: str, error: str, attempts: int) -> None:
        """Move an entry into the dead letters."""
        await self._bury(job.delivery, reason, error, attempts)

    async def _accept(self, page: list[Delivery]) -> list[Job]:
        jobs: list[Job] = []
        for delivery in page:
            held = self._held[delivery.stream]
            if delivery.id in held:
                continue  # our own, claimed by ourselves because it takes long
            held.add(delivery.id)
            if delivery.fields is None:
                await self._acknowledge(delivery)
                continue
            if delivery.deliveries > self._settings.max_deliveries:
                await self._bury(delivery, "crashes_worker", "delivered too often", 0)
                continue
            try:
                repo = decode_repo_job(delivery.fields.get(REPO_FIELD, b""))
            except MalformedEvent as error:
                self._metrics.count_failure("malformed_job")
                await self._bury(delivery, error.reason, str(error), 0)
                continue
            jobs.append(Job(delivery, repo))
            self._accepted.append(jobs[-1])
        return jobs

    async def _acknowledge(self, delivery: Delivery) -> None:
        settler = self._settlers[delivery.stream]
        await self._settle(partial(settler.acknowledge, [delivery.id]))
        self._held[delivery.stream].discard(delivery.id)

    async def _bury(self, delivery: Delivery, reason: str, error: str, attempts: int) -> None:
        move = partial(
            dead_letter, self._store, self._settlers[delivery.stream], delivery,
            reason=reason, error=error, attempts=attempts,
        )  # fmt: skip
        await self._settle(move)
        self._held[delivery.stream].discard(delivery.id)
        self._metrics.dead_lettered.inc()
        log.warning("repo given up", extra={"reason": reason, "error": error})

    async def _settle(self, action: Action) -> None:
        await self._settled.call(action)

    async def _settle_all(self, actions: Sequence[Action]) -> Sequence[None]:
        """Carry out actions in one turn of the thread; repeating one changes nothing."""
        while True:
            try:
                await self._settling.call(_each, actions)
            except (StoreUnavailable, StoreRejected) as error:
                self._metrics.store_errors.inc()
                if self._quiet.allow("settle") is not None:
                    log.warning("an entry cannot be settled", extra={"error": str(error)})
                await trio.sleep(1.0)
            else:
                return [None] * len(actions)


def _each(actions: Sequence[Action]) -> None:
    for action in actions:
        action()
