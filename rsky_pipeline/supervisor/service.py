"""The supervisor itself: takes its locks, starts its children in order, answers, stops in order.

Several supervisors may share a run directory, one for each set of roles: every role has a lock, and
the control socket is named by the roles. Embedded stores belong to exactly one supervisor (the lock
`stores` in the data directory); further ones need `redis_url` and `database_url`.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import trio

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import start_order
from rsky_pipeline.embedded import locations
from rsky_pipeline.embedded.errors import EmbeddedStoreError
from rsky_pipeline.embedded.program import StoreProgram
from rsky_pipeline.runtime import notify
from rsky_pipeline.runtime.errors import FORCED, SettingError, UnavailableError, WorkerError
from rsky_pipeline.runtime.lock import lacks_room
from rsky_pipeline.runtime.log_file import LogFile
from rsky_pipeline.runtime.program import raise_file_limit
from rsky_pipeline.supervisor import children, ownership, sequence, status
from rsky_pipeline.supervisor import machine as m
from rsky_pipeline.supervisor.child import ChildDriver
from rsky_pipeline.supervisor.control import ControlCommands, ControlServer
from rsky_pipeline.supervisor.errors import CANNOT_START, StartFailedError
from rsky_pipeline.supervisor.protocol import socket_path
from rsky_pipeline.supervisor.role_settings import RoleSettings
from rsky_pipeline.supervisor.sequence import StepLog, StopRequest, Urgency
from rsky_pipeline.supervisor.spawn import WORKER_PROGRAM
from rsky_pipeline.supervisor.status import Exporter
from rsky_pipeline.supervisor.status_document import SupervisorPhase, SupervisorStatus

GOODBYE_SECONDS = 2.0
REFRESH_SECONDS = 1.0
EXTENSION_SECONDS = 30.0
STORE_PATIENCE_SECONDS = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PipelinePlan:
    """The input of a supervisor. `program` starts a worker: role name and options are appended.

    `prepare_stores` (blocking) checks the stores and, if a role uses the database, as its second
    argument says, upgrades the schema and returns the changes. It calls its third argument with
    lines for the operator, and raises UnavailableError while the database is unreachable.
    `read_again` reads the configuration as at the start, and raises ConfigurationError.
    """

    settings: Settings
    roles: tuple[str, ...]
    prepare_stores: Callable[[Settings, bool, Callable[[str], None]], list[str] | None]
    program: Sequence[str] = WORKER_PROGRAM
    read_again: Callable[[], Settings] | None = None


def supervise(plan: PipelinePlan) -> int:
    """Run a pipeline in the foreground until it is stopped; return the exit code.

    Raises WorkerError if it cannot begin: AlreadyRunningError, PermissionDeniedError, SettingError.
    Later failures are logged and determine the exit code.
    """
    settings = locations.resolve_directories(plan.settings)
    kinds = children.embedded_stores(settings, plan.roles)
    raise_file_limit()
    with ownership.take(settings, plan.roles, embeds=bool(kinds)):
        settings = locations.store_urls(settings)
        service = Service(replace(plan, settings=settings), kinds)
        return trio.run(service.run)


class Service:
    """One supervisor while it runs."""

    def __init__(self, plan: PipelinePlan, kinds: Sequence[children.StoreKind]) -> None:
        self._plan = plan
        self._settings = plan.settings
        self._kinds = kinds
        self._state: SupervisorPhase = "starting"
        self._began = 0.0
        self._error: WorkerError | None = None
        self._stores: list[ChildDriver] = []
        self._steps = StepLog()
        self._request = StopRequest()
        self._notifier = notify.from_environment()
        self._log_file = LogFile()
        self._workers: dict[str, list[ChildDriver]] = {}
        self._role_settings = RoleSettings(plan.settings, plan.roles, plan.read_again)

    async def run(self) -> int:
        """Start, serve until asked to stop, stop. Returns the exit code."""
        self._began = trio.current_time()
        self._workers = self._make_workers()
        commands = ControlCommands(
            self._workers, self._request, self._steps, self.document, self._role_settings
        )
        path = socket_path(locations.run_directory(self._settings), self._plan.roles)
        control = ControlServer(path, commands.handle)
        with closing(Exporter(self._settings, self._plan.roles, self.document)) as exporter:
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    sequence.watch_signals, self._request, self._log_file, commands.hang_up
                )
                nursery.start_soon(control.run)
                nursery.start_soon(self._keep_informed, exporter)
                for workers in self._workers.values():
                    for worker in workers:
                        nursery.start_soon(worker.run)
                await self._start_unless_stopped(nursery)
                await self._request.at_least(Urgency.DRAIN)
                commands.finish(await self._stop())
                with trio.move_on_after(GOODBYE_SECONDS):
                    await control.until_idle()
                nursery.cancel_scope.cancel()
        if self._error is not None:
            return self._error.exit_code
        return FORCED if commands.forced else 0

    def document(self) -> SupervisorStatus:
        """Return the status document."""
        workers = [worker for each in self._workers.values() for worker in each]
        return status.document(
            state=self._state,
            roles=self._plan.roles,
            children=[*self._stores, *workers],
            began=self._began,
            run_dir=str(self._settings.run_dir),
            steps=self._steps.lines if self._state in ("starting", "running") else (),
        )

    def _make_workers(self) -> dict[str, list[ChildDriver]]:
        return {
            role: [
                children.worker_child(self._plan.program, role, number, self._role_settings)
                for number in range(1, self._settings.workers(role) + 1)
            ]
            for role in start_order(self._plan.roles)
        }

    async def _start_unless_stopped(self, nursery: trio.Nursery) -> None:
        """Run the start sequence; a stop request or a failure ends it early."""
        async with trio.open_nursery() as sequence:

            async def cut_short() -> None:
                await self._request.at_least(Urgency.DRAIN)
                sequence.cancel_scope.cancel()

            sequence.start_soon(cut_short)
            try:
                await self._start(nursery)
                sequence.cancel_scope.cancel()
            except WorkerError as error:
                self._fail(error)
            except Exception as error:
                log.exception("unexpected error while starting")
                self._fail(WorkerError(f"{type(error).__name__}: {error}"))

    def _fail(self, error: WorkerError) -> None:
        self._error = error
        self._steps.add(f"{CANNOT_START}{error}", bad=True)
        self._request.raise_to(Urgency.DRAIN)

    async def _start(self, nursery: trio.Nursery) -> None:
        killed = await ownership.await_survivors(self._suspects())
        for name in killed:
            self._steps.add(f"{name} of the previous supervisor was killed", bad=True)
        for kind in self._kinds:
            await self._start_store(kind, nursery)
        prepare = partial(
            self._plan.prepare_stores,
            self._settings,
            children.uses_database(self._plan.roles),
            self._remark,
        )
        await sequence.prepare_stores(prepare, self._steps)
        for role, workers in self._workers.items():
            await sequence.start_role(role, workers, self._steps)
        self._state = "running"
        self._steps.add("running")
        self._notifier.ready(self._summary())

    def _remark(self, line: str) -> None:
        """Add a step from a thread, once."""
        if line not in self._steps.lines:
            trio.from_thread.run_sync(partial(self._steps.add, line, bad=True))

    def _suspects(self) -> list[ownership.Survivor]:
        run_dir = locations.run_directory(self._settings)
        patience = self._settings.stop_timeout_seconds + children.WORKER_GRACE
        return ownership.suspects(run_dir, self._plan.roles, patience)

    async def _start_store(self, kind: children.StoreKind, nursery: trio.Nursery) -> None:
        try:
            program: StoreProgram = await trio.to_thread.run_sync(kind.prepare, self._settings)
        except EmbeddedStoreError as error:
            if lacks_room(error.__cause__):
                raise UnavailableError(str(error)) from error
            raise SettingError(str(error)) from error
        lock = children.store_lock(self._settings, kind.name)
        left = ownership.Survivor(kind.name, lock, STORE_PATIENCE_SECONDS, program.stop_signal)
        await ownership.await_survivors([left])
        child = children.store_child(program, self._settings)
        self._stores.append(child)
        nursery.start_soon(child.run)
        try:
            await sequence.start_store(child, program.last_log_lines, self._steps)
        except StartFailedError:
            child.send(m.Stop())
            raise

    async def _stop(self) -> bool:
        """Stop consumers first, then producers, then the stores; return whether one was killed."""
        self._state = "stopping"
        self._notifier.stopping("draining, consumers first")
        request, steps = self._request, self._steps
        killed = await sequence.stop_in_order(self._workers, request, steps)
        for store in reversed(self._stores):
            killed = await sequence.stop_group(store.name, [store], request, steps) or killed
        return killed

    async def _keep_informed(self, exporter: Exporter) -> None:
        """Refresh the document of the metrics thread, notify the watchdog, follow the log file."""
        own_log = locations.supervisor_log(self._settings)
        while True:
            self._log_file.follow(own_log)
            exporter.refresh()
            self._notifier.watchdog()
            self._notifier.status(self._summary())
            if self._state != "running":
                self._notifier.extend(EXTENSION_SECONDS)
            await trio.sleep(REFRESH_SECONDS)

    def _summary(self) -> str:
        children = [worker for workers in self._workers.values() for worker in workers]
        words = ", ".join(f"{child.name} {child.state.phase}" for child in children)
        return f"{self._state}: {words}"
