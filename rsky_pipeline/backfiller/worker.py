"""The loop of one backfiller: taking entries while there is room for them, and the drain."""

import trio

from rsky_pipeline.backfiller.attempt import Attempts
from rsky_pipeline.backfiller.jobs import JobQueue
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.streams.consumer import Delivery

HELD_FOR_EACH_SLOT = 8  # jobs in memory, most of which wait for their host or their directory
LEAST_HELD = 64
ROOM_SECONDS = 0.05  # between two looks whether there is room
IDLE_SECONDS = 0.2  # between two looks at streams that were empty
AWAY_SECONDS = 1.0  # the same where Redis failed
MAINTAIN_SECONDS = 15.0
WAKE_SECONDS = 0.5
HEALTH_SECONDS = 5.0
DRAIN_SECONDS = 10.0
RELEASE_SECONDS = 2.0  # for a store that does not answer while the worker is stopping


class Worker:
    """Takes entries, each of which a task of its own carries out."""

    def __init__(
        self, context: WorkerContext, jobs: JobQueue, attempts: Attempts,
        metrics: BackfillerMetrics,
    ) -> None:  # fmt: skip
        self._context = context
        self._jobs = jobs
        self._attempts = attempts
        self._metrics = metrics
        self._in_flight = 0
        self._waiting = 0
        concurrency = context.settings.backfiller_concurrency
        self._most_held = max(LEAST_HELD, HELD_FOR_EACH_SLOT * concurrency)

    async def run(self) -> None:
        """Work until told to stop, then let repos in flight end; the others stay pending."""
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as intake:
                intake.start_soon(self._take_in, nursery)
                intake.start_soon(self._wake)
                intake.start_soon(self._maintain)
                await self._context.stopping.wait()
                intake.cancel_scope.cancel()
            with trio.move_on_after(DRAIN_SECONDS):
                # Two conditions end it, one of them a count: looking is simpler than two events.
                while self._in_flight and not self._context.escalated.is_set():  # noqa: ASYNC110
                    await trio.sleep(ROOM_SECONDS)
            nursery.cancel_scope.cancel()
        await self._release()

    async def report_health(self) -> None:
        """Publish figures until cancelled."""
        while True:
            self._attempts.report()
            before = self._attempts.finished
            await trio.sleep(HEALTH_SECONDS)
            finished = self._attempts.finished
            self._context.health(
                {
                    "rate": round((finished - before) / HEALTH_SECONDS, 2),
                    "running": self._in_flight,
                    "waiting": self._waiting,
                    "finished": finished,
                }
            )

    async def _take_in(self, nursery: trio.Nursery) -> None:
        """Take entries until cancelled, first those that an earlier life left pending."""
        ready = False
        with self._context.activity("intake") as intake:
            while True:
                intake.progress()
                room = self._most_held - self._jobs.held
                if room < self._most_held // 8:  # few large pages instead of many small ones
                    await trio.sleep(ROOM_SECONDS)
                    continue
                taken = await self._jobs.take(room)
                for delivery in taken or ():
                    nursery.start_soon(self._carry_out, delivery)
                if not ready and self._jobs.taken_up:
                    ready = True
                    self._context.ready()
                if not taken:
                    await trio.sleep(AWAY_SECONDS if taken is None else IDLE_SECONDS)

    async def _carry_out(self, delivery: Delivery) -> None:
        if self._context.stopping.is_set():
            return
        self._in_flight += 1
        self._metrics.running.set(self._in_flight)
        try:
            await self._attempts.carry_out(delivery)
        finally:
            self._in_flight -= 1
            self._metrics.running.set(self._in_flight)

    async def _wake(self) -> None:
        """Bring back what has waited long enough, until cancelled."""
        while True:
            waiting = await self._jobs.wake()
            if waiting is not None:
                self._waiting = waiting
                self._metrics.waiting.set(waiting)
            await trio.sleep(WAKE_SECONDS)

    async def _maintain(self) -> None:
        while True:
            await trio.sleep(MAINTAIN_SECONDS)
            await self._jobs.maintain()

    async def _release(self) -> None:
        """Leave what did not end pending; the next life of this consumer takes it up."""
        self._context.health({"pending": self._jobs.held})
        with trio.move_on_after(RELEASE_SECONDS):
            await self._jobs.forgive()
