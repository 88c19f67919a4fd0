"""Stopping and starting everything in order, whoever manages the processes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rsky_pipeline.configuration.load import ConfigurationError, Loaded, load
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLE_NAMES, ROLES, start_order, stop_order
from rsky_pipeline.operations.ordered.movement import (
    Launch,
    Manager,
    Movement,
    MovementStep,
    RoleMove,
    StepFinding,
    Tell,
)
from rsky_pipeline.operations.ordered.supervised import Supervised
from rsky_pipeline.operations.ordered.units import Units
from rsky_pipeline.operations.ordered.verified import outstanding, verify_stopped
from rsky_pipeline.runtime.errors import WorkerError
from rsky_pipeline.streams.errors import StoreRejectedError, StoreUnavailableError
from rsky_pipeline.systemd.systemctl import Systemd, is_running

UNITS_RUN_DIRECTORY = Path("/run/rsky-pipeline")
LOOK_SECONDS = 1.0
QUIET_LOOKS = 2


class ForeignUnitsError(WorkerError):
    """The units of this host belong to another configuration than the one in use."""

    exit_code = 2


def manager_of(
    loaded: Loaded, settings: Settings, choice: str = "auto", systemd: Systemd | None = None
) -> Manager:
    """Return who manages the roles that this configuration names; nobody else's are touched.

    The units are meant by the configuration that they start with, and by no other one. `settings`
    are those of `loaded` with its directories. Raises ForeignUnitsError where the units are asked
    for, or their run directory is named, by another configuration.
    """
    ours = Supervised(settings)
    if choice == "supervisor" or (choice == "auto" and systemd is None and not is_running()):
        return ours
    units = Units(settings, systemd)
    theirs = units.configuration()
    if theirs is None:  # none is installed
        return units if choice == "systemd" else ours
    place = _run_directory(theirs)
    if _names(loaded, theirs):
        if choice == "auto" and not units.running() and ours.running():
            return ours  # `rsky-pipeline run` by hand
        return Units(replace(settings, run_dir=place), systemd)
    if choice == "systemd":
        raise ForeignUnitsError(
            f"the units use {theirs}, not this configuration: --config {theirs}"
        )
    if settings.run_dir == place:
        raise ForeignUnitsError(
            f"{place} is the run_dir of the units, which use {theirs}: give this configuration a "
            "run_dir of its own"
        )
    return ours


def _names(loaded: Loaded, theirs: Path) -> bool:
    """Return whether this is the configuration of the units, and of their directories."""
    if loaded.file is None or not _is_same(loaded.file.path, theirs):
        return False
    given = (loaded.origins[name] for name in ("run_dir", "data_dir"))
    changed = ("flag", "environment variable")
    units = str(theirs.parent)  # as the file of their variables
    return not any(origin.startswith(changed) and units not in origin for origin in given)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one.absolute() == other


def _run_directory(theirs: Path) -> Path:
    """Return the run directory of the units; RuntimeDirectory= is their default."""
    try:
        settings = load(theirs, {}, {}).settings
    except ConfigurationError:
        return UNITS_RUN_DIRECTORY
    return (settings.run_dir or UNITS_RUN_DIRECTORY).absolute()


def stop(
    manager: Manager,
    settings: Settings,
    *,
    roles: Sequence[str] = ROLE_NAMES,
    deadline: float | None = None,
    total: float | None = None,
    drain: bool = False,
    verify: bool = True,
    tell: Tell,
) -> Movement:
    """Stop running roles, consumers first; each has ended everywhere before the next is signalled.

    After `deadline` seconds a role is forced to end, after `total` seconds all remaining ones.
    `verify` checks in Redis that each role left its entries and cursors in order. `drain` reverses
    the order: producers first, and each consumer once its streams are read to the end, within
    `deadline` seconds per role. Supervisors and stores keep running (see `close`).
    """
    movement = Movement(manager.name)
    started = time.monotonic()
    wanted = [role for role in manager.running() if role in roles]
    for role in start_order(wanted) if drain else stop_order(wanted):
        if total is not None:
            deadline = max(0.0, total - (time.monotonic() - started))
        if drain:
            waited = _wait_until_applied(settings, role, deadline, tell)
            if waited is not None:
                movement.steps.append(waited)
                if not waited.ok:
                    return movement
        began = time.monotonic()
        moved = manager.stop(role, deadline if not drain else None, tell)
        findings = verify_stopped(settings, role, moved.cursors) if verify else ()
        for finding in findings:
            tell(f"  {finding.result}: {finding.text}")
        movement.steps.append(_step("stop", role, began, moved, findings))
    return movement


def start(
    manager: Manager, *, roles: Sequence[str] = ROLE_NAMES, tell: Tell, strict: bool = True
) -> Movement:
    """Start roles, producers first, each ready before the next; `strict` ends at a failure."""
    movement = Movement(manager.name)
    for role in start_order(roles):
        movement.steps.append(_moved("start", role, lambda r=role: manager.start(r, tell), tell))  # type: ignore[misc]
        if strict and not movement.ok:
            break
    return movement


def launch(manager: Supervised, program: Sequence[str], how: Launch, tell: Tell) -> Movement:
    """Start a supervisor in the background and wait until its roles are ready."""
    movement = Movement(manager.name)
    roles = ", ".join(how.roles)
    movement.steps.append(_moved("start", roles, lambda: manager.launch(program, how, tell), tell))
    return movement


def restart_rolling(manager: Manager, *, roles: Sequence[str], tell: Tell) -> Movement:
    """Replace processes one at a time, consumers first; end at the first that does not come up."""
    movement = Movement(manager.name)
    for role in stop_order(roles):
        movement.steps.append(
            _moved("restart", role, lambda r=role: manager.restart(r, tell), tell)  # type: ignore[misc]
        )
        if not movement.ok:
            break
    return movement


def close(manager: Manager, movement: Movement, tell: Tell, deadline: float | None = None) -> None:
    """End supervisors and their stores, and note it if there were any."""
    began = time.monotonic()
    moved = manager.close(tell, deadline)
    if moved.lines or moved.forced:
        movement.steps.append(_step("stop", "stores", began, moved))


def _wait_until_applied(
    settings: Settings, role: str, deadline: float | None, tell: Tell
) -> MovementStep | None:
    """Wait until a consumer has read and acknowledged everything; None for a role without input."""
    if not any(one.consumes for one in ROLES if one.name == role):
        return None
    began = time.monotonic()
    quiet = 0
    told = -LOOK_SECONDS * 10
    try:
        while quiet < QUIET_LOOKS:
            left = outstanding(settings, role)
            quiet = quiet + 1 if left == 0 else 0
            elapsed = time.monotonic() - began
            if quiet >= QUIET_LOOKS:
                break
            if deadline is not None and elapsed > deadline:
                text = f"{left:,} entries are left after {elapsed:.0f} s: nothing more was stopped"
                tell(f"  fail: {role}: {text}")
                finding = StepFinding("fail", text)
                return MovementStep("drain", role, elapsed, findings=(finding,), ok=False)
            if left and elapsed - told >= 2.0:
                tell(f"  waiting for the {role}: {left:,} entries left")
                told = elapsed
            time.sleep(LOOK_SECONDS / 2)
    except (StoreUnavailableError, StoreRejectedError) as error:
        raise WorkerError(f"cannot measure the entries left for the {role}: {error}") from error
    elapsed = time.monotonic() - began
    return MovementStep(
        "drain", role, elapsed, findings=(StepFinding("pass", "nothing is left to read"),)
    )


def _moved(action: str, role: str, move: Callable[[], RoleMove], tell: Tell) -> MovementStep:
    began = time.monotonic()
    try:
        moved = move()
    except WorkerError as error:
        tell(str(error))
        moved = RoleMove((str(error),), ok=False)
    return _step(action, role, began, moved)


def _step(
    action: str, role: str, began: float, moved: RoleMove, findings: tuple[StepFinding, ...] = ()
) -> MovementStep:
    elapsed = time.monotonic() - began
    return MovementStep(action, role, elapsed, moved.lines, findings, moved.forced, moved.ok)  # type: ignore[arg-type]
