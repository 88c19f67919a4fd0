"""Drives one child: feeds the state machine, performs its effects, listens to the process.

One task per child (`ChildDriver.run`) runs as long as the supervisor. While there is a process, a
second task waits for its exit and a third reads its event pipe (a store is probed instead).
"""

import logging
import math
import random
import subprocess
from collections.abc import Callable
from dataclasses import replace

import trio

from rsky_pipeline.runtime.channel import MAX_EVENT_BYTES, Event, decode_event
from rsky_pipeline.runtime.errors import WorkerError
from rsky_pipeline.runtime.health_document import HealthDocument, read_health
from rsky_pipeline.supervisor import machine as m
from rsky_pipeline.supervisor.machine import AT_REST, Child, Phase, Policy, step
from rsky_pipeline.supervisor.spawn import ChildProcess, descendants

SILENCE_SECONDS = 30.0  # a worker reports every second; twice this silence is a stuck loop
PROBE_SECONDS = 0.05
LIVENESS_SECONDS = 3.0  # between two questions to a store that is ready
PATIENCE_SECONDS = 15.0  # with one that does not answer: a busy machine is no reason to end it
LEAST_FAILURES = 4
LAST_WORDS_SECONDS = 1.0

log = logging.getLogger(__name__)


class ChildDriver:
    """One child, over all of its processes."""

    def __init__(
        self,
        role: str,
        instance: int | None,
        policy: Policy,
        launch: Callable[[bool], ChildProcess],
        answers: Callable[[], bool] | None = None,
    ) -> None:
        """`launch` is told whether the process before ended without a fault of its work; it raises
        OSError, ValueError or WorkerError if the process cannot be created. `answers` probes
        whether a store is ready. A worker reports readiness itself."""
        self.role = role
        self.instance = instance
        self.name = role if instance is None else f"{role}-{instance}"
        self.policy = policy
        self.state = Child()
        self.health = HealthDocument()
        self.metrics_port: int | None = None
        self._launch = launch
        self._answers = answers
        self._process: ChildProcess | None = None
        self._last_words: str | None = None
        self._oom_kills = 0  # of the kernel, when the process was started
        self._changed = trio.Event()
        self._send, self._receive = trio.open_memory_channel[m.Input](math.inf)

    @property
    def at_rest(self) -> bool:
        """Whether there is no process and none will start without an operator."""
        return self.state.phase in AT_REST

    @property
    def is_ready(self) -> bool:
        """Whether the process has reported readiness."""
        return self.state.phase is Phase.READY

    def send(self, event: m.Input) -> None:
        """Queue an input of the state machine, which the task `run` handles."""
        self._send.send_nowait(event)

    def set_log_level(self, level: str) -> None:
        """Have the process that runs, if any, log at a level."""
        if self._process is not None:
            self._process.tell(f"log_level {level}")

    async def until(self, condition: Callable[["ChildDriver"], bool]) -> None:
        """Wait until a condition on the state holds."""
        while not condition(self):
            await self._changed.wait()

    async def run(self) -> None:
        """Drive the child until cancelled; a running process then sees its liveness pipe close."""
        async with trio.open_nursery() as nursery:
            while True:
                self._apply(await self._next_input(), nursery)

    async def _next_input(self) -> m.Input:
        timer = self.state.timer
        with trio.move_on_at(math.inf if timer is None else timer):
            return await self._receive.receive()
        return m.Timer()

    def _apply(self, event: m.Input, nursery: trio.Nursery) -> None:
        inputs = [event]
        while inputs:
            before = self.state
            now = trio.current_time()
            self.state, effects = step(before, inputs.pop(0), now, self.policy)
            for effect in effects:
                match effect:
                    case m.Spawn():
                        inputs.append(self._spawn(nursery))
                    case m.Send(number):
                        if self._process is not None:
                            self._process.send(number)
                    case m.Announce(what, detail):
                        self._report(what, detail)
        self._changed.set()
        self._changed = trio.Event()

    def _spawn(self, nursery: trio.Nursery) -> m.Input:
        self.health = HealthDocument()
        self.metrics_port = None
        self._last_words = None
        before = self.state.last_exit
        self._oom_kills = _oom_kills()
        try:
            process = self._launch(before is None or before.blameless)
        except (OSError, ValueError, WorkerError) as error:
            return m.SpawnFailed(str(error), random.random())
        self._process = process
        nursery.start_soon(self._watch, process)
        return m.Spawned(process.pid)

    async def _watch(self, process: ChildProcess) -> None:
        """Follow a process to its end."""
        async with trio.open_nursery() as nursery:
            heard_all = trio.Event()
            if process.events is not None:
                nursery.start_soon(self._listen, process.events, heard_all)
            else:
                heard_all.set()
                nursery.start_soon(self._probe, process.pid)
            how = await process.wait()
            with trio.move_on_after(LAST_WORDS_SECONDS):
                await heard_all.wait()
            nursery.cancel_scope.cancel()
        await process.close()
        self._process = None
        oom = _oom_kills() > self._oom_kills
        self.send(m.Exited(replace(how, reason=self._last_words, oom=oom), random.random()))

    async def _listen(self, pipe: trio.lowlevel.FdStream, heard_all: trio.Event) -> None:
        """Read events until the pipe ends."""
        rest = b""
        silences = 0
        while True:
            chunk = None
            with trio.move_on_after(SILENCE_SECONDS):
                chunk = await pipe.receive_some(MAX_EVENT_BYTES)
            if chunk is None:
                silences += 1
                # Two in a row: one may mean that this process itself was suspended.
                if silences == 2:
                    limit = 2 * SILENCE_SECONDS
                    self.send(m.Unresponsive(f"no report for {limit:.0f} s"))
                continue
            silences = 0
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[:MAX_EVENT_BYTES]
            for line in lines:
                self._heard(decode_event(line))
        heard_all.set()

    def _heard(self, event: Event | None) -> None:
        if event is None:
            return
        if isinstance(event.get("health"), dict):
            self.health = read_health(event["health"])
            stalled = self.health.get("stalled")
            if stalled:
                self.send(m.Unresponsive(stalled))
        match event["event"]:
            case "started":
                self.metrics_port = event.get("metrics_port")
            case "ready":
                self.send(m.BecameReady())
            case "exit":
                self._last_words = event.get("reason")

    async def _probe(self, pid: int) -> None:
        """Probe a store until it answers, and then for as long as it runs."""
        limiter = trio.CapacityLimiter(1)
        failures, began = 0, 0.0

        async def asked() -> str | None:
            return await trio.to_thread.run_sync(
                _store_problem, self._answers, pid, limiter=limiter, abandon_on_cancel=True
            )

        while await asked() is not None:  # noqa: ASYNC110 - another process
            await trio.sleep(PROBE_SECONDS)
        self.send(m.BecameReady())
        while True:
            await trio.sleep(LIVENESS_SECONDS)
            problem = await asked()
            self.health = HealthDocument() if problem is None else HealthDocument(trouble=problem)
            if problem is None:
                failures = 0
                continue
            failures += 1
            began = trio.current_time() if failures == 1 else began
            # By count as well: this process may have been suspended itself.
            if failures >= LEAST_FAILURES and trio.current_time() - began >= PATIENCE_SECONDS:
                self.send(m.Unresponsive(problem))
                return

    def _report(self, what: str, detail: str) -> None:
        details: dict[str, object] = {"child": self.name, "pid": self.state.pid}
        if detail:
            details["detail"] = detail
        bad = what in ("failed", "crashloop", "not_ready", "unresponsive", "forcing")
        level = logging.ERROR if bad else logging.WARNING if what == "backoff" else logging.INFO
        log.log(level, what.replace("_", " "), extra=details)


def _store_problem(answers: Callable[[], bool] | None, pid: int) -> str | None:
    """Return why a store is not alive, or None; blocks for a few seconds at most.

    A server process that is stopped (SIGSTOP, a debugger) holds its locks and answers nobody, while
    the others of its server go on.
    """
    try:
        if answers is not None and not answers():
            return "does not answer"
    except (OSError, subprocess.SubprocessError) as error:
        return f"cannot be asked: {error}"
    stopped = [child for child, state in descendants(pid).items() if state in "Tt"]
    return f"process {stopped[0]} of it is stopped" if stopped else None


def _oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory."""
    try:
        with open("/proc/vmstat", encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, ValueError, StopIteration):
        return 0
