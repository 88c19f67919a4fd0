"""The worker's hold on `repo_backfill`: taking entries, and what becomes of each."""

import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial

import trio

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.runtime.logging import Throttled
from rsky_pipeline.runtime.threads import StoreThread
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.consume import SUSPICIOUS_DELIVERIES, Delivery, GroupReader
from rsky_pipeline.streams.dead_letters import dead_letter
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.event import REPO_FIELD, MalformedEvent, RepoJob, decode_repo_job
from rsky_pipeline.streams.names import REPO_BACKFILL
from rsky_pipeline.streams.trim import trim

log = logging.getLogger(__name__)
PAGE = 100
BLOCK_MS = 500


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
    """Reads and settles entries, on one connection for each."""

    def __init__(
        self, reading: Store, settling: Store, settings: Settings, consumer: str,
        metrics: BackfillerMetrics,
    ) -> None:  # fmt: skip
        group = settings.backfiller_group
        self._reader = GroupReader(reading, REPO_BACKFILL, group, consumer)
        self._settler = GroupReader(settling, REPO_BACKFILL, group, consumer)
        self._store = settling
        self._settings = settings
        self._metrics = metrics
        self._reading = StoreThread()
        self._settling = StoreThread()
        self._held: set[str] = set()
        self._quiet = Throttled()

    @property
    def held(self) -> int:
        """How many entries this worker holds."""
        return len(self._held)

    async def recover(self) -> AsyncGenerator[Job, None]:
        """Yield the entries that an earlier life of this consumer left pending.

        One at a time, since reading counts as a delivery: those behind a deadly one must not
        become suspicious with it.
        """
        await self._reading.call(self._reader.ensure)
        after = "0"
        while page := await self._reading.call(self._reader.own_pending, after, 1):
            after = page[-1].id
            for job in await self._accept(page):
                yield job

    async def release(self) -> None:
        """Leave what is held to the next life of this consumer; it is not to blame for the stop."""
        await self._settling.call(partial(self._settler.hold, tuple(self._held), forgive=True))

    async def claim(self) -> list[Job]:
        """Take over entries of consumers that are gone, and keep others from taking ours."""
        jobs: list[Job] = []
        held = tuple(self._held)  # copied: the calls run in a thread
        await self._reading.call(self._reader.hold, held)
        start = "0-0"
        idle_ms = self._settings.claim_idle_seconds * 1000
        while True:
            page = await self._reading.call(
                self._reader.claim_idle, idle_ms, start, PAGE, frozenset(held)
            )
            jobs += await self._accept(page.deliveries)
            self._metrics.claimed.inc(len(page.deliveries))
            start = page.next_start
            if start == "0-0":
                await self._settling.call(trim, self._store, REPO_BACKFILL)
                return jobs

    async def read(self, count: int) -> list[Job]:
        """Wait a moment for new entries and return them."""
        page = await self._reading.call(self._reader.read_new, count, BLOCK_MS)
        return await self._accept(page)

    async def finish(self, job: Job) -> None:
        """Acknowledge an entry. Waits until the store has done it."""
        await self._settle(partial(self._settler.acknowledge, [job.delivery.id]))
        self._held.discard(job.delivery.id)

    async def bury(self, job: Job, reason: str, error: str, attempts: int) -> None:
        """Move an entry into the dead letters."""
        await self._bury(job.delivery, reason, error, attempts)

    async def _accept(self, page: list[Delivery]) -> list[Job]:
        jobs: list[Job] = []
        for delivery in page:
            if delivery.id in self._held:
                continue  # our own, claimed by ourselves because it takes long
            self._held.add(delivery.id)
            if delivery.fields is None:
                await self._settle(partial(self._settler.acknowledge, [delivery.id]))
                self._held.discard(delivery.id)
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
        return jobs

    async def _bury(self, delivery: Delivery, reason: str, error: str, attempts: int) -> None:
        move = partial(
            dead_letter, self._store, self._settler, delivery,
            reason=reason, error=error, attempts=attempts,
        )  # fmt: skip
        await self._settle(move)
        self._held.discard(delivery.id)
        self._metrics.dead_lettered.inc()
        log.warning("repo given up", extra={"reason": reason, "error": error})

    async def _settle(self, action: "partial[int] | partial[bool]") -> None:
        while True:
            try:
                await self._settling.call(action)
            except (StoreUnavailable, StoreRejected) as error:
                self._metrics.store_errors.inc()
                if self._quiet.allow("settle") is not None:
                    log.warning("an entry cannot be settled", extra={"error": str(error)})
                await trio.sleep(1.0)
            else:
                return
