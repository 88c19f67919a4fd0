"""Starting in order: stores, schema, then producers before the consumers of their streams."""

import logging
from collections.abc import Callable, Sequence

import trio

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime.backoff import bound
from rsky_pipeline.runtime.errors import UNAVAILABLE, Unavailable
from rsky_pipeline.supervisor import messages as m
from rsky_pipeline.supervisor.child import ChildDriver
from rsky_pipeline.supervisor.errors import StartFailed
from rsky_pipeline.supervisor.machine import WAITING, Phase
from rsky_pipeline.supervisor.steps import Steps

RETRY_CAP_SECONDS = 15.0
STORE_ATTEMPTS = 5

log = logging.getLogger(__name__)


async def start_store(
    store: ChildDriver, last_lines: Callable[[], list[str]], steps: Steps
) -> None:
    """Start an embedded store and wait until it answers.

    Raises StartFailed with the end of its log when it does not come up.
    """
    began = trio.current_time()
    store.tell(m.Start())
    await store.until(lambda child: child.is_ready or _gave_up(child))
    if not store.is_ready:
        how = store.state.last_exit
        log_end = " | ".join(last_lines())
        message = f"{store.name} does not start: {how.describe() if how else 'stopped'}; {log_end}"
        raise StartFailed(message, UNAVAILABLE)
    steps.tell(f"{store.name} ready ({trio.current_time() - began:.1f} s)")


async def prepare_database(
    prepare: Callable[[Settings], list[str]], settings: Settings, steps: Steps
) -> None:
    """Bring the schema up to date, waiting for a database that is not reachable yet.

    `prepare` blocks and returns what it did; it raises Unavailable when trying again makes sense.
    """
    limiter = trio.CapacityLimiter(1)
    attempt = 0
    while True:
        try:
            done = await trio.to_thread.run_sync(
                prepare, settings, limiter=limiter, abandon_on_cancel=True
            )
        except Unavailable as error:
            attempt += 1
            wait = bound(attempt, 1.0, RETRY_CAP_SECONDS)
            details = {"reason": str(error), "next_try_seconds": wait}
            log.warning("the database is not available yet", extra=details)
            await trio.sleep(wait)
        else:
            steps.tell(f"schema: {len(done)} changes applied" if done else "schema up to date")
            return


async def start_role(role: str, workers: Sequence[ChildDriver], steps: Steps) -> None:
    """Start the workers of a role and wait for their readiness, within their time limit.

    One that is late does not hold up the others: it is reported and retried in the background.
    Raises StartFailed when one failed for good (configuration, permission).
    """
    began = trio.current_time()
    for worker in workers:
        worker.tell(m.Start())
    limit = max(worker.policy.ready_timeout for worker in workers)
    with trio.move_on_after(limit):
        for worker in workers:
            await worker.until(lambda child: child.is_ready or child.state.phase is Phase.FAILED)
    elapsed = trio.current_time() - began
    for worker in workers:
        how = worker.state.last_exit
        if worker.state.phase is Phase.FAILED and how is not None:
            raise StartFailed(f"{worker.name} cannot run: {how.describe()}", how.code or 1)
    late = [worker.name for worker in workers if not worker.is_ready]
    if late:
        names = ", ".join(late)
        steps.tell(f"{names} not ready after {elapsed:.0f} s, going on without", bad=True)
    else:
        who = role if len(workers) == 1 else f"{role} ({len(workers)} workers)"
        steps.tell(f"{who} ready ({elapsed:.1f} s)")


async def restart_role(workers: Sequence[ChildDriver], steps: Steps) -> bool:
    """Replace the workers of a role one at a time; stop at one that does not become ready."""
    for worker in workers:
        began = trio.current_time()
        starts = worker.state.starts
        worker.tell(m.Restart())
        patience = worker.policy.ready_timeout + sum(rung.wait for rung in worker.policy.ladder)
        with trio.move_on_after(patience):
            await worker.until(
                lambda child: (
                    child.state.starts > starts  # noqa: B023  # awaited at once
                    and (child.is_ready or child.state.phase is Phase.FAILED or _waits(child))
                )
            )
        if not worker.is_ready or worker.state.starts == starts:
            steps.tell(f"{worker.name} is {worker.state.phase}, restart given up", bad=True)
            return False
        steps.tell(f"{worker.name} restarted ({trio.current_time() - began:.1f} s)")
    return True


def _gave_up(child: ChildDriver) -> bool:
    gone = child.at_rest and child.state.starts > 0
    return gone or child.state.failures >= STORE_ATTEMPTS


def _waits(child: ChildDriver) -> bool:
    return child.state.phase in WAITING
