"""Starting and stopping children in order, and the steps that are reported meanwhile.

The order comes from the role graph (`configuration.topology`): stores, schema, then producers
before the consumers of their streams; and back. Each group is ready, or gone, before the next one
is started or signalled. `StopRequest` is how urgent a stop is: signals, the control socket and time
limits raise it, `stop_group` passes it on.
"""

import logging
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from enum import IntEnum

import trio

from rsky_pipeline.configuration.topology import stop_order
from rsky_pipeline.runtime.backoff import bound
from rsky_pipeline.runtime.errors import UNAVAILABLE, UnavailableError
from rsky_pipeline.runtime.log_file import LogFile
from rsky_pipeline.supervisor import machine as m
from rsky_pipeline.supervisor.child import ChildDriver
from rsky_pipeline.supervisor.errors import StartFailedError
from rsky_pipeline.supervisor.machine import ALIVE, HOPELESS, WAITING, Child, Phase

RETRY_CAP_SECONDS = 15.0
STORE_ATTEMPTS = 5
KILL_AFTER_ESCALATION_SECONDS = 10.0

log = logging.getLogger("rsky_pipeline.supervisor")


class StepLog:
    """The lines of a start or stop: logged, and sent to those who follow from then on."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._changed = trio.Event()
        self.finished = False

    def add(self, line: str, *, bad: bool = False) -> None:
        """Add a line."""
        log.log(logging.WARNING if bad else logging.INFO, line)
        self.lines.append(line)
        self._wake()

    def finish(self) -> None:
        """Let every follower end."""
        self.finished = True
        self._wake()

    async def follow(self, *, from_start: bool = False) -> AsyncIterator[str]:
        """Yield lines as they are added, until `finish`; those added before with `from_start`."""
        position = 0 if from_start else len(self.lines)
        while True:
            while position < len(self.lines):
                yield self.lines[position]
                position += 1
            if self.finished:
                return
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Urgency(IntEnum):
    """How urgent a stop is; it only ever grows."""

    NONE = 0
    DRAIN = 1
    ESCALATE = 2
    KILL = 3


class StopRequest:
    """Whether, and how urgently, the supervisor is asked to stop."""

    def __init__(self) -> None:
        self.urgency = Urgency.NONE
        self._changed = trio.Event()

    def raise_to(self, urgency: Urgency) -> None:
        """Ask for at least this urgency."""
        if urgency > self.urgency:
            self.urgency = urgency
            self._changed.set()
            self._changed = trio.Event()

    async def force_after(self, seconds: float | None) -> None:
        """Grow urgent when a time limit has passed, and more so a little later."""
        if seconds is None:
            return
        await trio.sleep(seconds)
        self.raise_to(Urgency.ESCALATE)
        await trio.sleep(KILL_AFTER_ESCALATION_SECONDS)
        self.raise_to(Urgency.KILL)

    async def at_least(self, urgency: Urgency) -> None:
        """Wait until the request is that urgent."""
        while self.urgency < urgency:
            await self._changed.wait()


async def watch_signals(
    request: StopRequest,
    log_file: LogFile,
    hang_up: Callable[[], None],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Turn signals into stop requests until cancelled.

    TERM and INT: ordered stop; a second one skips the draining, a third one kills. QUIT skips the
    draining at once. HUP reopens the log file and calls `hang_up`; it is a stop only where there is
    a terminal instead.
    """
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup: leave it so
        numbers.append(signal.SIGHUP)
    heard = 0
    with trio.open_signal_receiver(*numbers) as received:
        task_status.started()
        async for number in received:
            if number == signal.SIGHUP and not log_file.hang_up():
                hang_up()
                continue
            heard = max(heard + 1, 2 if number == signal.SIGQUIT else 1)
            urgency = Urgency(min(heard, Urgency.KILL))
            what = {
                Urgency.DRAIN: "stopping in order; once more skips the draining",
                Urgency.ESCALATE: "skipping the draining; once more kills",
                Urgency.KILL: "killing",
            }[urgency]
            log.warning(what, extra={"signal": signal.Signals(number).name})
            request.raise_to(urgency)


async def start_store(
    store: ChildDriver, last_lines: Callable[[], list[str]], steps: StepLog
) -> None:
    """Start an embedded store and wait until it answers.

    Raises StartFailedError with the end of its log when it does not come up.
    """
    began = trio.current_time()
    store.send(m.Start())
    await store.until(lambda child: child.is_ready or _gave_up(child))
    if not store.is_ready:
        how = store.state.last_exit
        log_end = " | ".join(last_lines())
        message = f"{store.name} does not start: {how.describe() if how else 'stopped'}; {log_end}"
        raise StartFailedError(message, UNAVAILABLE)
    steps.add(f"{store.name} ready ({trio.current_time() - began:.1f} s)")


async def prepare_stores(prepare: Callable[[], list[str] | None], steps: StepLog) -> None:
    """Check the stores and upgrade the schema, waiting for a database that is not reachable yet.

    `prepare` blocks and returns the changes made, None if no role here uses the database; it raises
    UnavailableError if a retry may help.
    """
    limiter = trio.CapacityLimiter(1)
    attempt, told = 0, ""
    while True:
        try:
            done = await trio.to_thread.run_sync(prepare, limiter=limiter, abandon_on_cancel=True)
        except UnavailableError as error:
            attempt += 1
            wait = bound(attempt, 1.0, RETRY_CAP_SECONDS)
            details = {"reason": str(error), "next_try_seconds": wait}
            log.warning("the database is not available yet", extra=details)
            if str(error) != told:
                told = str(error)
                steps.add(f"waiting for the database: {told}", bad=True)
            await trio.sleep(wait)
        else:
            if done is not None:
                steps.add(f"schema: {len(done)} changes applied" if done else "schema up to date")
            return


async def start_role(role: str, workers: Sequence[ChildDriver], steps: StepLog) -> list[str]:
    """Start the workers of a role and wait for their readiness, within their time limit.

    One that is late, or ends again and again, does not hold up the others: it is reported, also by
    the result, and retried in the background. Raises StartFailedError when one failed for good
    (configuration, permission).
    """
    began = trio.current_time()
    for worker in workers:
        worker.send(m.Start())
    limit = max(worker.policy.ready_timeout for worker in workers)
    with trio.move_on_after(limit):
        for worker in workers:
            await worker.until(lambda child: child.is_ready or child.state.phase in HOPELESS)
    elapsed = trio.current_time() - began
    for worker in workers:
        how = worker.state.last_exit
        if worker.state.phase is Phase.FAILED and how is not None:
            raise StartFailedError(f"{worker.name} cannot run: {how.describe()}", how.code or 1)
    late = [_late(worker, elapsed) for worker in workers if not worker.is_ready]
    for line in late:
        steps.add(f"{line}, going on without", bad=True)
    if not late:
        who = role if len(workers) == 1 else f"{role} ({len(workers)} workers)"
        steps.add(f"{who} ready ({elapsed:.1f} s)")
    return late


def _late(worker: ChildDriver, elapsed: float) -> str:
    how = worker.state.last_exit
    if worker.state.phase is Phase.CRASHLOOP and how is not None:
        return f"{worker.name} ends again and again: {how.describe()}"
    return f"{worker.name} not ready after {elapsed:.0f} s"


async def restart_role(workers: Sequence[ChildDriver], steps: StepLog) -> bool:
    """Replace the workers of a role one at a time; stop at one that does not become ready."""
    for worker in workers:
        began = trio.current_time()
        starts = worker.state.starts
        worker.send(m.Restart())
        limit = worker.policy.ready_timeout + sum(each.wait for each in worker.policy.escalation)
        with trio.move_on_after(limit):
            await worker.until(
                lambda child: (
                    child.state.starts > starts  # noqa: B023  # awaited at once
                    and (child.is_ready or child.state.phase is Phase.FAILED or _waits(child))
                )
            )
        if not worker.is_ready or worker.state.starts == starts:
            how = worker.state.last_exit
            why = f": {how.describe()}" if how is not None and not worker.is_ready else ""
            text = f"{worker.name} is {worker.state.phase}{why}; restart given up"
            steps.add(text, bad=True)
            return False
        steps.add(f"{worker.name} restarted ({trio.current_time() - began:.1f} s)")
    return True


async def stop_in_order(
    workers: Mapping[str, Sequence[ChildDriver]], request: StopRequest, steps: StepLog
) -> bool:
    """Stop the workers of these roles, consumers before the producers of their streams.

    Returns whether one had to be killed.
    """
    killed = False
    for role in stop_order(workers):
        killed = await stop_group(role, workers[role], request, steps) or killed
    return killed


async def stop_group(
    name: str, children: Sequence[ChildDriver], request: StopRequest, steps: StepLog
) -> bool:
    """Stop children of one role together, and add the step when all are gone.

    Returns whether one had to be killed.
    """
    began = trio.current_time()
    before = [child.state for child in children]
    running = [child for child in children if not child.at_rest]
    for child in running:
        child.send(m.Stop())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_press, running, request)
        for child in running:
            await child.until(lambda child: child.at_rest)
        nursery.cancel_scope.cancel()
    if not any(state.phase in ALIVE for state in before):
        steps.add(f"{name} was not running")
        return False
    elapsed = trio.current_time() - began
    killed = any(child.state.kills > old.kills for child, old in zip(children, before, strict=True))
    steps.add(_describe(name, running, elapsed, killed), bad=killed)
    return killed


def _gave_up(child: ChildDriver) -> bool:
    gone = child.at_rest and child.state.starts > 0
    return gone or child.state.failures >= STORE_ATTEMPTS


def _waits(child: ChildDriver) -> bool:
    return child.state.phase in WAITING


async def _press(children: Sequence[ChildDriver], request: StopRequest) -> None:
    await request.at_least(Urgency.ESCALATE)
    for child in children:
        child.send(m.Escalate())
    await request.at_least(Urgency.KILL)
    for child in children:
        child.send(m.Kill())


def _describe(name: str, children: Sequence[ChildDriver], elapsed: float, killed: bool) -> str:
    who = name if len(children) == 1 else f"{name} ({len(children)} workers)"
    figures = [f"{elapsed:.1f} s"]
    pending = [held for child in children if (held := child.health.get("pending")) is not None]
    if pending:
        figures.append(f"{sum(pending)} pending")
    if killed:
        return f"{who} did not drain in time and was killed ({', '.join(figures)})"
    failures = [problem for child in children if (problem := _problem(child.state))]
    if failures:
        return f"{who} stopped ({', '.join(figures)}), {'; '.join(failures)}"
    if children[0].instance is None:
        return f"{who} stopped ({', '.join(figures)})"
    return f"{who} drained and stopped ({', '.join(figures)})"


def _problem(state: Child) -> str | None:
    how = state.last_exit
    if state.phase is Phase.FAILED or how is None or how.code == 0:
        return None
    return how.describe()
