"""The main loop of a backfiller: reads entries while slots are free, and drains on stop."""

import trio

from rsky_pipeline.backfiller.attempt import Attempts
from rsky_pipeline.backfiller.jobs import JobQueue
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.runtime.context import WorkerContext

HELD_FOR_EACH_SLOT = 8  # jobs in memory; most wait for their PDS or the PLC directory
LEAST_HELD = 64
ROOM_SECONDS = 0.05  # poll interval while all slots are taken
IDLE_SECONDS = 0.2  # poll interval while the streams are empty
AWAY_SECONDS = 1.0  # poll interval while Redis fails
MAINTAIN_SECONDS = 15.0
WAKE_SECONDS = 0.5
HEALTH_SECONDS = 5.0
DRAIN_SECONDS = 10.0
RELEASE_SECONDS = 2.0  # timeout of Redis while the worker is stopping


class Worker:
    """Reads entries and starts one task for each."""

    def __init__(
        self, context: WorkerContext, jobs: JobQueue, attempts: Attempts,
        metrics: BackfillerMetrics,
    ) -> None:  # fmt: skip
        self._context = context
        self._jobs = jobs
        self._attempts = attempts
        self._metrics = metrics
        self._waiting = 0
        concurrency = context.settings.backfiller_concurrency
        self._most_held = max(LEAST_HELD, HELD_FOR_EACH_SLOT * concurrency)
        metrics.running.set_function(lambda: jobs.held)

    async def run(self) -> None:
        """Work until a stop is requested, then finish repos in flight; the others stay pending."""
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as intake:
                intake.start_soon(self._take_in, nursery)
                intake.start_soon(self._wake)
                intake.start_soon(self._maintain)
                await self._context.stopping.wait()
                intake.cancel_scope.cancel()
            with trio.move_on_after(DRAIN_SECONDS):
                # The drain ends on one of two conditions, one a count: polling is simplest.
                while nursery.child_tasks and not self._context.escalated.is_set():  # noqa: ASYNC110
                    await trio.sleep(ROOM_SECONDS)
            nursery.cancel_scope.cancel()
        await self._release()

    async def report_health(self) -> None:
        """Publish the health document until cancelled."""
        while True:
            self._attempts.fetcher.report()
            before = self._attempts.finished
            await trio.sleep(HEALTH_SECONDS)
            finished = self._attempts.finished
            self._context.health(
                {
                    "rate": round((finished - before) / HEALTH_SECONDS, 2),
                    "running": self._jobs.held,
                    "waiting": self._waiting,
                    "finished": finished,
                }
            )

    async def _take_in(self, nursery: trio.Nursery) -> None:
        """Read entries until cancelled; first those left pending before the restart."""
        ready = False
        with self._context.activity("intake") as intake:
            while True:
                intake.progress()
                room = self._most_held - self._jobs.held
                if room < self._most_held // 8:  # read few large pages rather than many small ones
                    await trio.sleep(ROOM_SECONDS)
                    continue
                taken = await self._jobs.take(room)
                # Entries that arrive after the stop was requested stay pending.
                for delivery in () if self._context.stopping.is_set() else taken or ():
                    nursery.start_soon(self._attempts.carry_out, delivery)
                if not ready and self._jobs.taken_up:
                    ready = True
                    self._context.ready()
                if not taken:
                    await trio.sleep(AWAY_SECONDS if taken is None else IDLE_SECONDS)

    async def _wake(self) -> None:
        """Requeue postponed entries that are due, until cancelled."""
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
        """Reset delivery counts of unfinished entries, which stay pending for the next start."""
        self._context.health({"pending": self._jobs.held})
        with trio.move_on_after(RELEASE_SECONDS):
            await self._jobs.forgive()
