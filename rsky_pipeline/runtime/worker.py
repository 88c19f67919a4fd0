"""The harness around a role: signals, readiness, liveness, health and exit code.

Signals: the first TERM or INT sets `stopping` (drain), the second `escalated` (finish the write in
progress); QUIT sets both and prints the stacks of all threads, even if the event loop is stuck.
Signal handlers never raise: a commit may be in progress.
"""

import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio
from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.settings import LOG_LEVELS, Settings
from rsky_pipeline.configuration.topology import ROLES
from rsky_pipeline.observability.findings import FAILS, active_findings
from rsky_pipeline.observability.server import MetricsServer, process_registry
from rsky_pipeline.observability.streams import entries_waiting, letters_by_stream, stream_lengths
from rsky_pipeline.runtime import logging as log_setup
from rsky_pipeline.runtime import notify
from rsky_pipeline.runtime.channel import BLAMELESS, EventSender, WorkerPipes
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.errors import FORCED, UNEXPECTED, exit_code_of
from rsky_pipeline.runtime.further_workers import forget, level_asked_for, note
from rsky_pipeline.runtime.health import Health
from rsky_pipeline.runtime.health_document import pipeline_of
from rsky_pipeline.runtime.log_file import LogFile
from rsky_pipeline.runtime.metrics_port import open_metrics_server
from rsky_pipeline.runtime.program import give_memory_back, raise_file_limit
from rsky_pipeline.runtime.threads import ease_collector, take_turns_quickly

RoleMain = Callable[[WorkerContext], Awaitable[None]]

STATUS_INTERVAL_SECONDS = 1.0
GIVE_BACK_SECONDS = 10.0
GRACE_AFTER_HURRY_SECONDS = 10.0
LAST_WORDS_SECONDS = 1.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

log = logging.getLogger(__name__)


def consumer_name(role: str, instance: int) -> str:
    """Return the name of a worker in consumer groups: the same after every restart, so that it
    finds its own pending entries again, and unique among the hosts that share a Redis."""
    return f"{socket.gethostname()}-{role}-{instance}"


def run_worker(
    main: RoleMain,
    *,
    settings: Settings,
    role: str,
    instance: int = 1,
    pipes: WorkerPipes | None = None,
    read_log_level: Callable[[], str] | None = None,
) -> int:
    """Run a role until a signal stops it; return the exit code of the process.

    Without pipes it runs standalone: no supervisor, and only systemd is notified of readiness.
    SIGHUP then applies the level that `read_log_level` returns, which raises ValueError.
    """
    log_setup.configure(settings.log_level, settings.log_format, role=role, instance=instance)
    faulthandler.enable()
    raise_file_limit()
    ease_collector()
    take_turns_quickly()
    worker = _Worker(main, settings, role, instance, pipes or WorkerPipes(), read_log_level)
    try:
        trio.run(worker.run)
    except Exception as error:
        code, reason = exit_code_of(error)
        details = error if code == UNEXPECTED else None
        log.critical("worker failed", extra={"reason": reason, "code": code}, exc_info=details)
        worker.exit_code = code
        return code
    finally:
        worker.close()
    return worker.exit_code


@dataclass(frozen=True, slots=True)
class _Flags:
    stopping: trio.Event
    escalated: trio.Event


class _Worker:
    def __init__(
        self,
        main: RoleMain,
        settings: Settings,
        role: str,
        instance: int,
        pipes: WorkerPipes,
        read_log_level: Callable[[], str] | None,
    ) -> None:
        self._main = main
        self._read_log_level = read_log_level
        self._settings = settings
        self._role = role
        self._instance = instance
        self._consumes = {stream for one in ROLES if one.name == role for stream in one.consumes}
        self._liveness = pipes.liveness
        self._events = EventSender(pipes.events)
        self._health = Health(role, instance, pipeline=pipeline_of(settings))
        self._server: MetricsServer | None = None
        self._role_is_ready = False
        self._notifier = (
            notify.from_environment() if pipes.events is None else notify.Notifier(None)
        )
        self._log_file = LogFile()
        self._is_supervised = pipes.events is not None
        self._note: Path | None = None
        self.exit_code = 0

    async def run(self) -> None:
        context = self._context()
        flags = _Flags(context.stopping, context.escalated)
        failure: BaseException | None = None
        async with trio.open_nursery() as services:
            services.start_soon(self._events.run)
            try:
                await self._run_role(context, flags)
            except Exception as error:  # noqa: BLE001  # raised below, after the last event
                failure = error
            reason = exit_code_of(failure)[1] if failure else None
            self._events.send("exit", reason=reason, health=self._health.document())
            self._events.finish()
            services.cancel_scope.deadline = trio.current_time() + LAST_WORDS_SECONDS
        if failure is not None:
            raise failure
        if not flags.stopping.is_set():
            self.exit_code = UNEXPECTED
            log.critical("the role ended without a stop signal")

    async def _run_role(self, context: WorkerContext, flags: _Flags) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals, flags)
            nursery.start_soon(self._watch_supervisor, flags)
            nursery.start_soon(self._beat, context.registry)
            nursery.start_soon(self._role_task, context, nursery.cancel_scope)
            # The role declares its metrics before its first await: let it get there, so that the
            # first scrape includes all of them.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            self._serve_metrics(context.registry)

    async def _role_task(self, context: WorkerContext, scope: trio.CancelScope) -> None:
        await self._main(context)
        scope.cancel()

    def close(self) -> None:
        """Free the metrics port. The note of a worker that failed stays: it should run."""
        if self.exit_code in (0, FORCED):
            forget(self._note)
        if self._server is not None:
            self._server.close()

    def _context(self) -> WorkerContext:
        return WorkerContext(
            settings=self._settings,
            role=self._role,
            instance=self._instance,
            consumer=consumer_name(self._role, self._instance),
            registry=process_registry(),
            ready=self._ready,
            activity=self._health.activity,
            health=self._health.report,
            blameless=os.environ.pop(BLAMELESS, "") == "1",
        )

    def _serve_metrics(self, registry: CollectorRegistry) -> None:
        self._server = open_metrics_server(
            self._settings, self._role, self._instance, registry, self._health.answer
        )
        self._events.send("started", pid=os.getpid(), metrics_port=self._server.port)
        if not self._is_supervised and self._settings.run_dir is not None:
            self._note = note(self._settings.run_dir, self._role, self._instance, self._server.port)
        self._announce()

    def _ready(self) -> None:
        self._role_is_ready = True
        self._announce()

    def _announce(self) -> None:
        """Announce readiness once the role is ready and its metrics are served."""
        served = self._server is not None
        if not served or not self._role_is_ready or self._health.state != "starting":
            return
        self._health.state = "ready"
        self._health.beat()
        self._events.send("ready", health=self._health.document())
        self._notifier.ready(f"{self._role} is ready")
        log.info("ready")

    async def _beat(self, registry: CollectorRegistry) -> None:
        """Report health while the event loop runs, including the drain."""
        give_back_at = trio.current_time()
        while True:
            self._log_file.follow()
            if (level := level_asked_for(self._note)) is not None:
                _change_log_level(level)
            self._health.beat()
            self._health.observe(
                {
                    "streams": stream_lengths(registry),
                    "dead_letters": letters_by_stream(registry),
                    "lag": entries_waiting(registry, self._consumes),
                    "findings": active_findings(registry),
                    "failing": active_findings(registry, FAILS),
                }
            )
            self._events.send("status", health=self._health.document())
            if self._health.trouble() in (None, "starting"):
                self._notifier.watchdog()
            if trio.current_time() >= give_back_at:
                give_memory_back()
                give_back_at = trio.current_time() + GIVE_BACK_SECONDS
            await trio.sleep(STATUS_INTERVAL_SECONDS)

    async def _watch_signals(
        self, flags: _Flags, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        # Ignored under nohup: leave it so.
        hang_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        with trio.open_signal_receiver(*STOP_SIGNALS, *hang_up) as signals:
            # Registered after trio's handler, so it runs first and then chains to it.
            if _has_descriptor(sys.stderr):
                faulthandler.register(signal.SIGQUIT, all_threads=True, chain=True)
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP and not self._log_file.hang_up():
                    self._apply_configured_level()
                    continue
                escalate = flags.stopping.is_set() or number == signal.SIGQUIT
                self._stop(flags, signal.Signals(number).name, escalate)

    def _apply_configured_level(self) -> None:
        """Apply the log level of the configuration, as systems expect of SIGHUP."""
        if self._read_log_level is None:
            return
        try:
            level = self._read_log_level()
        except ValueError as error:
            log.error("log level not read again", extra={"error": str(error)})
        else:
            _change_log_level(level)

    async def _watch_supervisor(self, flags: _Flags) -> None:
        """Do what the supervisor asks for; drain if it is gone.

        Then escalate and exit, as it can no longer kill us.
        """
        if self._liveness is None:
            return
        async with trio.lowlevel.FdStream(self._liveness) as pipe:
            rest = b""
            while chunk := await pipe.receive_some():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    _obey(line.decode(errors="replace").split())
        budget = self._settings.stop_timeout_seconds
        _exit_in(budget + GRACE_AFTER_HURRY_SECONDS)
        self._stop(flags, "the supervisor is gone", escalate=False)
        await trio.sleep(budget)
        self._stop(flags, "drain timed out", escalate=True)

    def _stop(self, flags: _Flags, reason: str, escalate: bool) -> None:
        self._health.state = "stopping"
        what = "finishing only the write in progress" if escalate else "stopping"
        log.info(what, extra={"reason": reason})
        self._notifier.stopping(f"{self._role} is stopping")
        flags.stopping.set()
        if escalate:
            flags.escalated.set()


def _obey(words: list[str]) -> None:
    """Do what a line of the supervisor asks for; newer ones may ask for what is not known here."""
    if len(words) == 2 and words[0] == "log_level" and words[1] in LOG_LEVELS:
        _change_log_level(words[1])


def _change_log_level(level: str) -> None:
    log_setup.set_level(level)
    shown = max(logging.WARNING, logging.getLogger().level)  # whatever the level is now
    log.log(shown, "log level changed", extra={"log_level": level})


def _exit_in(seconds: float) -> None:
    """Exit after this long in any case: the event loop may be stuck in a thread."""
    timer = threading.Timer(seconds, os._exit, (FORCED,))
    timer.daemon = True
    timer.start()


def _has_descriptor(stream: object) -> bool:
    try:
        return stream.fileno() >= 0  # type: ignore[attr-defined, no-any-return]
    except (AttributeError, OSError, ValueError):
        return False
