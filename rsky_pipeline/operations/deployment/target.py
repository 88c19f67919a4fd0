"""What is deployed to: the program file, who runs it, and how it was started."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.operations.ordered.movement import Launch, Manager
from rsky_pipeline.operations.ordered.supervised import Supervised
from rsky_pipeline.operations.ordered.units import Units
from rsky_pipeline.runtime.errors import WorkerError
from rsky_pipeline.runtime.program import program_file
from rsky_pipeline.systemd.files import STANDARD_PROGRAM


@dataclass(frozen=True, slots=True)
class Target:
    """The installed program and what runs of it."""

    program: Path
    manager: Manager
    roles: tuple[str, ...]
    launches: tuple[Launch, ...]  # of our own supervisors; none with systemd


def find_target(settings: Settings, manager: Manager) -> Target:
    """Look at what runs. Raises WorkerError when it is unclear which file that is."""
    roles = manager.running()
    launches = tuple(manager.launches()) if isinstance(manager, Supervised) else ()
    program = settings.binary_path or _running_program(manager, roles, launches) or program_file()
    if program is None:
        raise WorkerError(
            "it is unclear which file to replace: set binary_path to the installed program"
        )
    return Target(Path(os.path.realpath(program)), manager, roles, launches)


def _running_program(
    manager: Manager, roles: tuple[str, ...], launches: tuple[Launch, ...]
) -> Path | None:
    found = {launch.program for launch in launches if launch.program is not None}
    if isinstance(manager, Units):
        found = {unit.program for role in roles for unit in manager.units(role) if unit.program}
        found = found or {STANDARD_PROGRAM}
    if len(found) > 1:
        names = ", ".join(sorted(map(str, found)))
        raise WorkerError(f"several programs run ({names}): set binary_path to the one to replace")
    return next(iter(found), None)


def launches_document(launches: tuple[Launch, ...]) -> list[dict[str, Any]]:
    """Return launches as JSON for the journal."""
    return [
        {
            "program": str(launch.program) if launch.program else None,
            "arguments": list(launch.arguments),
            "roles": list(launch.roles),
            "directory": str(launch.directory),
        }
        for launch in launches
    ]


def launches_from(document: list[dict[str, Any]]) -> tuple[Launch, ...]:
    """Return what `launches_document` wrote."""
    return tuple(
        Launch(
            Path(each["program"]) if each["program"] else None,
            tuple(each["arguments"]),
            tuple(each["roles"]),
            Path(each["directory"]),
        )
        for each in document
    )
