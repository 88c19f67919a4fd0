"""Roles as systemd units: the main unit of each role and further workers of its template."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.sources import DEFAULT_FILES
from rsky_pipeline.configuration.topology import ROLE_NAMES, start_order
from rsky_pipeline.embedded import locations
from rsky_pipeline.operations.ordered.movement import RoleMove, Tell
from rsky_pipeline.operations.ordered.supervised import last_words, with_complaint
from rsky_pipeline.runtime.errors import UNAVAILABLE, WorkerError
from rsky_pipeline.runtime.health_document import CursorHealth
from rsky_pipeline.supervisor import client
from rsky_pipeline.supervisor.errors import NoAnswerError, NotRunningError
from rsky_pipeline.systemd.systemctl import Systemd, Unit

FORCING = {"timeout", "watchdog", "signal", "core-dump"}  # results of a stop that was no stop
KILL_SECONDS = 30.0
LOOK_SECONDS = 0.5
START_RESERVE_SECONDS = 300.0  # beside ready_timeout_seconds: stores, schema, survivors


class Units:
    """The units of this host."""

    name = "systemd"

    def __init__(self, settings: Settings, systemd: Systemd | None = None) -> None:
        """`settings` went through `resolve_directories`."""
        self._systemd = systemd or Systemd()
        self._run_dir = locations.run_directory(settings)
        self._ready_seconds = settings.ready_timeout_seconds
        self._stopped: dict[str, list[str]] = {}  # systemd forgets instances that do not run

    def running(self) -> tuple[str, ...]:
        """Return the roles with a unit that is up."""
        return start_order(
            [role for role in ROLE_NAMES if any(unit.is_up for unit in self.units(role))]
        )

    def configuration(self) -> Path | None:
        """Return the configuration file that the units start with; None if none is installed."""
        for role in ROLE_NAMES:
            for unit in self.units(role):
                return unit.configuration or DEFAULT_FILES[-1]
        return None

    def units(self, role: str) -> list[Unit]:
        """Return the units of a role."""
        return self._systemd.units(role)

    def stop(self, role: str, deadline: float | None, tell: Tell) -> RoleMove:
        """Stop all units of a role at once."""
        names = [unit.name for unit in self.units(role) if unit.is_up]
        cursors = self._reported_cursors(role)
        if not names:
            tell(f"{role} was not running")
            return RoleMove((f"{role} was not running",))
        self._stopped[role] = names
        killed = self._within(deadline, names, lambda: self._systemd.stop(names))
        lines, forced = [], killed
        for name in names:
            unit = self._systemd.show(name)
            forced = forced or unit.result in FORCING
            lines.append(f"{name} {unit.active} ({unit.result})")
            tell(lines[-1])
        up = any(self._systemd.show(name).is_up for name in names)
        return RoleMove(tuple(lines), forced, not up, cursors)

    def start(self, role: str, tell: Tell) -> RoleMove:
        """Start the main unit of a role, its further loaded units, and units that we stopped."""
        known = [unit.name for unit in self.units(role)]
        names = list(dict.fromkeys([*known, *self._stopped.get(role, [])]))
        if not names:
            raise WorkerError(
                f"rsky-{role}.service is not installed: `rsky-pipeline systemd install`"
            )
        return self._settle(role, names, lambda: self._systemd.start(names), tell)

    def reload(self, roles: Sequence[str], tell: Tell) -> None:
        """Nothing: a unit that is restarted reads its configuration."""

    def restart(self, role: str, tell: Tell) -> RoleMove:
        """Restart the units of a role one at a time."""
        lines: list[str] = []
        ok = True
        for unit in self.units(role):
            one = unit.name
            moved = self._settle(role, [one], lambda one=one: self._systemd.restart([one]), tell)  # type: ignore[misc]
            lines += moved.lines
            ok = ok and moved.ok
            if not ok:
                break
        return RoleMove(tuple(lines), ok=ok)

    def close(self, tell: Tell, deadline: float | None = None) -> RoleMove:
        """Nothing is left when the units are stopped."""
        return RoleMove()

    def crash_loops(self, roles: Sequence[str]) -> list[str]:
        """Return a line for each worker and unit of roles that ends again and again."""
        units = [unit for role in roles for unit in self.units(role)]
        looping = [
            unit
            for unit in units
            if unit.active == "failed"
            or (unit.restarts >= client.OFTEN and unit.exit_code != UNAVAILABLE)
        ]
        return [
            *(
                line
                for role in roles
                for line in client.crash_loops(self._supervisors(role), [role])
            ),
            *(f"{unit.name} ended {unit.restarts + 1} times: {unit.end}" for unit in looping),
        ]

    def _settle(
        self, role: str, names: list[str], action: Callable[[], None], tell: Tell
    ) -> RoleMove:
        """Start or restart units; a worker that is not ready then fails the move."""
        lines = []

        def news(line: str) -> None:
            lines.append(line)
            tell(line)

        ok = True
        try:
            self._narrated(role, action, news)
        except WorkerError as error:
            news(str(error))
            ok = False
        for name in names:
            unit = self._systemd.show(name)
            state = f"{name} {unit.active} ({unit.sub})"
            if unit.active == "active":
                news(state)
                continue
            ok = False
            news(f"{state}, {unit.end}" if unit.end else state)
            if reason := last_words(self._systemd.last_lines(unit)):
                news(f"{name}: {reason}")
        for line in client.not_ready(self._supervisors(role), [role]):
            news(with_complaint(line, self._systemd.last_lines(self._systemd.show(names[0]))))
            ok = False
        return RoleMove(tuple(lines), ok=ok)

    def _narrated(self, role: str, action: Callable[[], None], news: Tell) -> None:
        """Do something that waits for readiness, and pass on the steps of the supervisors begun.

        systemd waits for as long as a supervisor does, for example for its database. Raises
        WorkerError, also when nothing has come of it after the time limit.
        """
        problem: list[WorkerError] = []

        def work() -> None:
            try:
                action()
            except WorkerError as error:
                problem.append(error)

        began = time.monotonic()
        limit = self._ready_seconds + START_RESERVE_SECONDS
        told: dict[int, int] = {}
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
            elapsed = time.monotonic() - began
            for each in self._supervisors(role):
                if each.status["uptime_seconds"] > elapsed + 1:  # the one before
                    continue
                steps = each.status.get("steps", ())
                pid = each.status["pid"]
                for step in steps[told.get(pid, 0) :]:
                    news(f"  {step}")
                told[pid] = len(steps)
            if elapsed > limit:
                raise WorkerError(f"the {role} is not up after {limit:.0f} s; systemd goes on")
        if problem:
            raise problem[0]

    def _supervisors(self, role: str) -> list[client.Supervisor]:
        """Return the supervisors of a role; none where they cannot be asked."""
        try:
            return [each for each in client.find(self._run_dir) if role in each.roles]
        except (NotRunningError, NoAnswerError):
            return []

    def _within(self, deadline: float | None, names: list[str], action: Callable[[], None]) -> bool:
        """Do something that waits; after the deadline kill the units. Returns whether that was."""
        if deadline is None:
            action()
            return False
        problem: list[WorkerError] = []

        def work() -> None:
            try:
                action()
            except WorkerError as error:
                problem.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(deadline)
        forced = thread.is_alive()
        if forced:
            self._systemd.kill(names)
            thread.join(KILL_SECONDS)
        if problem and not forced:
            raise problem[0]
        return forced

    def _reported_cursors(self, role: str) -> tuple[CursorHealth, ...]:
        """Return the workers' last report, while the supervisor of the unit still runs.

        A verification without it is weaker, and still one.
        """
        return client.reported_cursors(self._supervisors(role), role)
