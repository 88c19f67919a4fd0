"""Roles as systemd units: the main unit of each role and further workers of its template."""

import threading
from collections.abc import Callable

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLE_NAMES, start_order
from rsky_pipeline.embedded import locations
from rsky_pipeline.operations.ordered.movement import RoleMove, Tell
from rsky_pipeline.runtime.errors import WorkerError
from rsky_pipeline.runtime.health_document import CursorHealth
from rsky_pipeline.supervisor import client
from rsky_pipeline.supervisor.errors import NoAnswerError, NotRunningError
from rsky_pipeline.systemd.systemctl import Systemd, Unit

FORCING = {"timeout", "watchdog", "signal", "core-dump"}  # results of a stop that was no stop
KILL_SECONDS = 30.0


class Units:
    """The units of this host."""

    name = "systemd"

    def __init__(self, settings: Settings, systemd: Systemd | None = None) -> None:
        """`settings` went through `resolve_directories`."""
        self._systemd = systemd or Systemd()
        self._run_dir = locations.run_directory(settings)
        self._stopped: dict[str, list[str]] = {}  # systemd forgets instances that do not run

    def running(self) -> tuple[str, ...]:
        """Return the roles with a unit that is up."""
        return start_order(
            [role for role in ROLE_NAMES if any(unit.is_up for unit in self.units(role))]
        )

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
        return self._settle(names, lambda: self._systemd.start(names), tell)

    def restart(self, role: str, tell: Tell) -> RoleMove:
        """Restart the units of a role one at a time."""
        lines: list[str] = []
        ok = True
        for unit in self.units(role):
            one = unit.name
            moved = self._settle([one], lambda one=one: self._systemd.restart([one]), tell)  # type: ignore[misc]
            lines += moved.lines
            ok = ok and moved.ok
            if not ok:
                break
        return RoleMove(tuple(lines), ok=ok)

    def close(self, tell: Tell, deadline: float | None = None) -> RoleMove:
        """Nothing is left when the units are stopped."""
        return RoleMove()

    def _settle(self, names: list[str], action: Callable[[], None], tell: Tell) -> RoleMove:
        lines = []
        try:
            action()
        except WorkerError as error:
            lines.append(str(error))
            tell(lines[-1])
        ok = not lines
        for name in names:
            unit = self._systemd.show(name)
            lines.append(f"{name} {unit.active} ({unit.sub})")
            tell(lines[-1])
            ok = ok and unit.active == "active"
        return RoleMove(tuple(lines), ok=ok)

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
        """Return the workers' last report, while the supervisor of the unit still runs."""
        try:
            return client.reported_cursors(client.find(self._run_dir), role)
        except (NotRunningError, NoAnswerError):
            return ()  # a verification without it is weaker, and still one
