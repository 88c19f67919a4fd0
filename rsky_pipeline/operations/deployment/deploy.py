"""Deploying a program file step by step, undoing it by itself when a step fails.

preflight, stop, backup, swap, migrate, clean, start, verify, watch. The journal has each step
before it begins; one that a crash interrupted is resumed, or undone by the next deployment or
rollback.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.embedded import locations
from rsky_pipeline.operations.deployment import program as files
from rsky_pipeline.operations.deployment import unpacked
from rsky_pipeline.operations.deployment.journal import Journal, JournalEntry
from rsky_pipeline.operations.deployment.preflight import (
    Preflight,
    preflight,
    supervisor_environment,
)
from rsky_pipeline.operations.deployment.program import (
    DeploymentTarget,
    Program,
    describe,
    find_target,
    launches_from,
)
from rsky_pipeline.operations.ordered import flow
from rsky_pipeline.operations.ordered.movement import Manager, Movement, Tell
from rsky_pipeline.operations.ordered.supervised import Supervised
from rsky_pipeline.operations.ordered.units import Units
from rsky_pipeline.runtime.errors import WorkerError

PAUSE_SECONDS = 1.0  # between two verifications that are waited for
STEPS = ("stop", "backup", "swap", "migrate", "clean", "start", "verify", "watch")


class NotHealthyError(WorkerError):
    """The verification did not pass in time."""


class StepFailedError(Exception):
    """A step failed; the deployment is undone."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(f"{step}: {reason}")
        self.step = step


@dataclass(frozen=True, slots=True)
class DeploymentOrder:
    """A deployment as ordered. Times are in seconds; `purge` holds pairs of a stream and a type."""

    source: Path
    kind: Literal["deploy", "rollback"] = "deploy"
    purge: tuple[tuple[str, str], ...] = ()
    verify_window: float = 30.0  # a stall of live events takes 20 s to judge
    verify_limit: float = 180.0
    watch: float = 300.0
    accept: tuple[str, ...] = ()
    deadline: float | None = None  # of each role's stop


@dataclass(slots=True)
class DeploymentOutcome:
    """How a deployment went. `outcome` is one of journal.OUTCOMES, or `planned` of a dry run."""

    id: str
    outcome: str
    reason: str = ""
    failed_step: str | None = None
    recovered: str | None = None  # the id of an interrupted deployment that was undone first
    plan: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, str]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)


class Deployer:
    """Carries out one order. Blocking; the caller holds the deployment lock."""

    def __init__(
        self,
        settings: Settings,
        manager: Manager,
        configuration: Sequence[str],
        tell: Tell,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`settings` went through `resolve_directories` and `store_urls`; `configuration` are the
        arguments that name the configuration for the program files, `environment` further variables
        for them."""
        self.settings = settings
        self.manager = manager
        self._configuration = tuple(configuration)
        # Older versions do not read the file of the units' variables themselves.
        self._environment = {
            name: value for name, value in environment.items() if name not in os.environ
        }
        self._tell = tell
        self._data_dir = locations.data_directory(settings)
        self.journal = Journal(self._data_dir)
        self._outcome = DeploymentOutcome("", "refused")

    def run(self, order: DeploymentOrder, *, dry_run: bool = False) -> DeploymentOutcome:
        """Deploy, or return the plan of a dry run. Raises WorkerError if it cannot be planned."""
        target = find_target(self.settings, self.manager)
        found = self._preflight(target, order.source)
        stamp = files.new_stamp(target.program)
        self._outcome = DeploymentOutcome(stamp, "planned" if dry_run else "refused")
        self._outcome.checks = [asdict(check) for check in found.checks]
        self._outcome.plan = _plan(order, target, found, stamp)
        for check in found.checks:
            self._tell(f"{check.result}: {check.name}: {check.text}")
        if dry_run or not found.ok:
            bad = [check.text for check in found.checks if check.result == "fail"]
            self._outcome.reason = "; ".join(bad)
            return self._outcome
        launches = [asdict(launch) for launch in target.launches]
        self.journal.begin(stamp, {**self._outcome.plan, "launches": launches})
        self._carry_out(order, target, stamp)
        return self._outcome

    def _preflight(self, target: DeploymentTarget, source: Path) -> Preflight:
        """Ask the new file, which unpacks for that into a folder that is removed."""
        own = unpacked.own_root()
        roots = [own, *unpacking_roots(self.manager)]
        with suppress(OSError):
            own.mkdir(mode=0o700, parents=True, exist_ok=True)
        base = own if os.access(own, os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix="deploy-", dir=base) as folder:
            asked = replace(
                self._program(source), environment={**self._environment, "SHIV_ROOT": folder}
            )
            return preflight(target, asked, self._data_dir, roots)

    def resume(self, order: DeploymentOrder) -> DeploymentOutcome:
        """Go on with an interrupted deployment behind its last finished step.

        File, kind and what is purged are those of then, times and exceptions those of `order`. If
        it fails, it is undone. Raises WorkerError if there is none, or it cannot go on.
        """
        entry = self.journal.unfinished()
        if entry is None:
            raise WorkerError("no deployment was interrupted")
        plan, source = entry.plan, Path(entry.plan["source"])
        if entry.reached("undo"):
            raise WorkerError(
                f"{entry.id} was being undone: `rsky-pipeline rollback` finishes that"
            )
        swapped = entry.finished("swap")
        if not swapped and plan.get("sha256") != _digest(source):
            raise WorkerError(
                f"{source} is not the file of {entry.id} any more: `rsky-pipeline rollback` first"
            )
        self._tell(f"the {plan['kind']} {entry.id} goes on")
        self._outcome = DeploymentOutcome(entry.id, "failed", plan=entry.document())
        self._outcome.steps = [
            {"step": name, "state": "done"} for name in STEPS if entry.finished(name)
        ]
        purge = tuple((each.rpartition(":")[0], each.rpartition(":")[2]) for each in plan["purge"])
        order = replace(order, source=source, kind=plan["kind"], purge=purge)
        launches = launches_from(plan.get("launches", []))
        target = DeploymentTarget(
            Path(plan["program"]), self.manager, tuple(plan["roles"]), launches
        )
        done = {name for name in ("migrate", "clean") if entry.finished(name)}
        if swapped:  # whatever runs now was started from the new file
            done |= {"stop", "backup", "swap"}
        elif files.backup_path(target.program, entry.id).exists():
            done.add("backup")
        self._carry_out(order, target, entry.id, frozenset(done))
        return self._outcome

    def recover(self) -> JournalEntry | None:
        """Undo a deployment that was interrupted; return it, or None if there was none.

        Raises WorkerError when it cannot be undone.
        """
        entry = self.journal.unfinished()
        if entry is None:
            return None
        self._tell(f"the {entry.plan['kind']} {entry.id} was interrupted")
        if entry.finished("watch"):
            self.journal.end(entry.id, "deployed", "was complete when it was interrupted")
            return entry
        program = Path(entry.plan["program"])
        launches = launches_from(entry.plan.get("launches", []))
        target = DeploymentTarget(program, self.manager, tuple(entry.plan["roles"]), launches)
        if entry.reached("stop"):
            self._undo(target, entry.id, swapped=entry.reached("swap"))
        self.journal.end(entry.id, "rolled back", "was interrupted")
        return entry

    def _carry_out(
        self,
        order: DeploymentOrder,
        target: DeploymentTarget,
        stamp: str,
        done: frozenset[str] = frozenset(),
    ) -> None:
        """Do all steps but those that are done; undo everything if one fails."""
        try:
            self._steps(order, target, stamp, done)
        except StepFailedError as error:
            self._tell(f"{error}; rolling back")
            self._outcome.failed_step, self._outcome.reason = error.step, str(error)
            swapped = any(step["step"] == "swap" for step in self._outcome.steps)
            try:
                self._undo(target, stamp, swapped=swapped)
            except (WorkerError, OSError) as problem:
                self._finish("failed", f"{error}; and the rollback failed: {problem}")
                return
            self._finish("rolled back", str(error))
        else:
            self._finish("deployed", "")
        self._clean_up(target.program)

    def _steps(
        self, order: DeploymentOrder, target: DeploymentTarget, stamp: str, done: frozenset[str]
    ) -> None:
        new = self._program(target.program)

        def step(name: str, action: Callable[[], dict[str, Any]]) -> None:
            if name not in done:
                self._step(name, action)

        step("stop", lambda: self._stop(target, order.deadline))
        step("backup", lambda: self._back_up(target.program, stamp))
        step("swap", lambda: self._swap(order.source, target.program))
        if order.kind == "deploy":
            step("migrate", lambda: self._ask(new, "db", "init", "--json"))
        for stream, kind in order.purge:
            step("clean", lambda s=stream, k=kind: self._purge(new, s, k))  # type: ignore[misc]
        step("start", lambda: self._start(target))
        step("verify", lambda: self._verify(new, order, target.roles, order.verify_limit))
        if order.watch:
            step("watch", lambda: self._watch(new, order, target.roles))

    def _clean_up(self, program: Path) -> None:
        """Remove what nobody needs any more; too many files are no reason to go back."""
        try:
            for path in files.prune(program, self.settings.backups_kept):
                self._tell(f"removed {path}")
            for folder in unpacked.unused(
                [unpacked.own_root(), *unpacking_roots(self.manager)], [program]
            ):
                if unpacked.remove(folder):
                    self._tell(f"removed {folder}")
        except OSError as error:
            self._tell(f"an old file cannot be removed: {error}")

    def _step(self, name: str, action: Callable[[], dict[str, Any]]) -> None:
        """Do a step between two lines of the journal. Raises StepFailedError."""
        began = time.monotonic()
        self._tell(f"{name} ...")
        self.journal.step(self._outcome.id, name, "begin")
        record: dict[str, Any] = {"step": name, "state": "begin"}
        self._outcome.steps.append(record)
        try:
            record["details"] = action()
            record["state"] = "done"
        except (WorkerError, OSError) as error:
            record["state"], record["details"] = "failed", {"reason": str(error)}
            raise StepFailedError(name, str(error)) from error
        except KeyboardInterrupt:
            record["state"], record["details"] = "failed", {"reason": "interrupted"}
            raise StepFailedError(name, "interrupted") from None
        finally:
            record["seconds"] = round(time.monotonic() - began, 3)
            self.journal.step(self._outcome.id, name, record["state"], record.get("details", {}))
        self._tell(f"{name} done ({record['seconds']:.1f} s)")

    def _finish(self, outcome: str, reason: str) -> None:
        self._outcome.outcome, self._outcome.reason = outcome, reason
        self.journal.end(self._outcome.id, outcome, reason)

    # --- steps --------------------------------------------------------------------------------

    def _stop(self, target: DeploymentTarget, deadline: float | None) -> dict[str, Any]:
        movement = flow.stop(
            self.manager, self.settings, roles=target.roles, deadline=deadline, tell=self._tell
        )
        return _checked(movement)

    def _back_up(self, program: Path, stamp: str) -> dict[str, Any]:
        place = files.back_up(program, stamp)
        self._tell(f"the current file is kept as {place}")
        return {"backup": str(place), "sha256": files.digest(place)}

    def _swap(self, source: Path, program: Path) -> dict[str, Any]:
        files.swap(source, program)
        return {"program": str(program), "sha256": files.digest(program)}

    def _ask(self, program: Program, *arguments: str) -> dict[str, Any]:
        answer = program.ask(*arguments)
        if not answer.ok:
            raise WorkerError(answer.complaint())
        return {"answer": answer.document}

    def _purge(self, program: Program, stream: str, kind: str) -> dict[str, Any]:
        details = self._ask(program, "streams", "purge", stream, "--type", kind, "--json")
        self._tell(f"{stream}: entries of type {kind} removed: {_removed(details)}")
        return details

    def _start(self, target: DeploymentTarget) -> dict[str, Any]:
        movement = start_all(target, self.settings, self._tell)
        return _checked(movement)

    def _verify(
        self, program: Program, order: DeploymentOrder, roles: Sequence[str], limit: float
    ) -> dict[str, Any]:
        return wait_until_healthy(
            program, self._tell, window=order.verify_window, limit=limit, accept=order.accept,
            broken=lambda: "; ".join(self.manager.crash_loops(roles)),
        )  # fmt: skip

    def _watch(
        self, program: Program, order: DeploymentOrder, roles: Sequence[str]
    ) -> dict[str, Any]:
        """Verify again and again; a failure gets one more chance, as a busy moment may cause it."""
        deadline = time.monotonic() + order.watch
        looks = 0
        details: dict[str, Any] = {}
        while time.monotonic() < deadline:
            details = self._verify(program, order, roles, 2 * order.verify_window + 5)
            looks += 1
        return {**details, "looks": looks}

    def _undo(self, target: DeploymentTarget, stamp: str, *, swapped: bool) -> None:
        """Put the earlier file back and start it. Raises WorkerError or OSError."""
        self.journal.step(stamp, "undo", "begin")
        movement = flow.stop(
            self.manager, self.settings, roles=target.roles, deadline=None, tell=self._tell
        )
        backup = files.backup_path(target.program, stamp)
        if swapped and backup.exists():
            files.swap(backup, target.program)
            backup.unlink()  # else failed tries would push out the backups of other versions
            self._tell(f"{target.program} is the one of before again")
        started = start_all(target, self.settings, self._tell)
        details = {"stop": movement.document(), "start": started.document()}
        self.journal.step(stamp, "undo", "done" if started.ok else "failed", details)
        if not started.ok:
            raise WorkerError(_complaint(started))

    def _program(self, path: Path) -> Program:
        return Program(path, self._configuration, self._environment)


def wait_until_healthy(
    program: Program,
    tell: Tell,
    *,
    window: float,
    limit: float,
    accept: Sequence[str] = (),
    broken: Callable[[], str] = lambda: "",
) -> dict[str, Any]:
    """Return the figures of the first verification that passes. Raises WorkerError.

    A pipeline that was just started needs a moment, so it is asked again for `limit` seconds,
    unless `broken` returns why it cannot become well. `accept` are beginnings of check names that
    may fail.
    """
    deadline = time.monotonic() + limit
    while True:
        if why := broken():
            raise NotHealthyError(why)
        answer = program.ask(
            "verify", "--json", f"--window={window:.0f}s", seconds=window + 300, futile=broken
        )
        document = answer.document
        if not isinstance(document, dict) or "checks" not in document:
            raise WorkerError(f"`verify` of {program.path} does not answer: {answer.complaint()}")
        failed = [
            f"{check['name']}: {check['figure']}"
            for check in document["checks"]
            if check["status"] == "fail" and not check["name"].startswith(tuple(accept) or "\0")
        ]
        counts = ", ".join(f"{count} {status}" for status, count in document["counts"].items())
        if not failed:
            tell(f"verified: {counts}")
            return {"counts": document["counts"]}
        tell(f"not well yet: {'; '.join(failed)}")
        if time.monotonic() > deadline:
            raise NotHealthyError("; ".join(failed))
        time.sleep(PAUSE_SECONDS)


def start_all(target: DeploymentTarget, settings: Settings, tell: Tell) -> Movement:
    """Start the roles that ran before, from the program file as it is now."""
    manager = target.manager
    if not isinstance(manager, Supervised):
        return flow.start(manager, roles=target.roles, tell=tell)
    movement = Movement(manager.name)
    flow.close(manager, movement, tell)
    for launch in target.launches:
        movement.steps += flow.launch(manager, (str(target.program),), launch, tell).steps
        if not movement.ok:
            break
    return movement


def _plan(
    order: DeploymentOrder, target: DeploymentTarget, found: Preflight, stamp: str
) -> dict[str, Any]:
    return {
        "kind": order.kind,
        "source": os.path.abspath(order.source),
        "program": str(target.program),
        "backup": str(files.backup_path(target.program, stamp)),
        "manager": target.manager.name,
        "roles": list(target.roles),
        "sha256": _digest(order.source),
        "from": describe(found.old_build),
        "to": describe(found.new_build),
        "purge": [f"{stream}:{kind}" for stream, kind in order.purge],
        "watch_seconds": order.watch,
        "steps": [
            step for step in STEPS
            if not (step == "clean" and not order.purge)
            and not (step == "migrate" and order.kind == "rollback")
            and not (step == "watch" and not order.watch)
        ],
    }  # fmt: skip


def unpacking_roots(manager: Manager) -> list[Path]:
    """Return where the program files of this manager's processes unpack."""
    if isinstance(manager, Units):
        units = (unit for role in ROLE_NAMES for unit in manager.units(role))
        return list(dict.fromkeys(unit.unpacks_to for unit in units if unit.unpacks_to))
    if isinstance(manager, Supervised):
        environments = map(supervisor_environment, manager.supervisors())
        return list(dict.fromkeys(unpacked.root_of(each) for each in environments if each))
    return []


def _digest(path: Path) -> str:
    return files.digest(path) if path.is_file() else ""


def _checked(movement: Movement) -> dict[str, Any]:
    if not movement.ok:
        raise WorkerError(_complaint(movement))
    return movement.document()


def _complaint(movement: Movement) -> str:
    """Return the failure of a movement, in one line."""
    for step in movement.steps:
        if not step.good:
            failed = [finding.text for finding in step.findings if finding.result == "fail"]
            words = "; ".join([*failed, *step.lines[-2:]]) or "did not succeed"
            return f"{step.action} {step.role}: {words}"
    return "did not succeed"


def _removed(details: dict[str, Any]) -> object:
    answer = details.get("answer")
    return answer.get("removed", "?") if isinstance(answer, dict) else "?"
