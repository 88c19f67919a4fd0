"""The children of a supervisor: embedded stores, then the workers of its roles.

For each kind: its lock, its command and its policy.
"""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLES
from rsky_pipeline.embedded import locations, postgres, valkey
from rsky_pipeline.embedded.errors import EmbeddedStoreError
from rsky_pipeline.embedded.program import StoreProgram
from rsky_pipeline.runtime.errors import SettingError
from rsky_pipeline.runtime.further_workers import lock_of
from rsky_pipeline.runtime.lock import Lock, acquire, is_held
from rsky_pipeline.supervisor.child import ChildDriver
from rsky_pipeline.supervisor.machine import Policy, StopStep
from rsky_pipeline.supervisor.role_settings import RoleSettings
from rsky_pipeline.supervisor.spawn import ChildProcess, spawn_store, spawn_worker

ESCALATED_SECONDS = 5.0
STACKS_SECONDS = 2.0
KILL_SECONDS = 5.0
GIVE_UP_SECONDS = 10.0  # for a store that does not answer to end by each signal
WORKER_GRACE = 15.0  # s; a worker without a supervisor forces itself a little earlier


@dataclass(frozen=True, slots=True)
class StoreKind:
    """An embedded store before it is prepared."""

    name: str
    prepare: Callable[[Settings], StoreProgram]


def embedded_stores(settings: Settings, roles: Sequence[str]) -> list[StoreKind]:
    """Return the stores that no URL is set for and that these roles use.

    Raises SettingError when the wheel of one is not installed.
    """
    kinds = []
    try:
        if settings.redis_url is None:
            locations.valkey_program()
            kinds.append(StoreKind("valkey", valkey.prepare))
        if settings.database_url is None and uses_database(roles):
            locations.postgres_folder()
            kinds.append(StoreKind("postgres", postgres.prepare))
    except EmbeddedStoreError as error:
        raise SettingError(str(error)) from error
    return kinds


def uses_database(roles: Sequence[str]) -> bool:
    """Return whether any of the roles writes to PostgreSQL."""
    return any(role.database for role in ROLES if role.name in roles)


def store_lock(settings: Settings, name: str) -> Path:
    """Return the lock of a running store: one server per directory."""
    return locations.data_directory(settings) / "locks" / f"{name}.lock"


def worker_lock(run_dir: Path, role: str, instance: int) -> Path:
    """Return the lock of a running worker: one process per consumer name."""
    return run_dir / "locks" / f"{role}-{instance}.lock"


def store_child(program: StoreProgram, settings: Settings) -> ChildDriver:
    """Return the driver of an embedded store."""

    def launch(_: bool) -> ChildProcess:
        lock = _free_lock(store_lock(settings, program.name))
        try:
            run_dir = locations.run_directory(settings)
            return spawn_store(program, lock, run_dir, settings.stop_timeout_seconds + WORKER_GRACE)
        finally:
            lock.let_go()

    policy = store_policy(program.stop_signal, settings)
    return ChildDriver(program.name, None, policy, launch, program.answers)


def worker_child(
    program: Sequence[str], role: str, instance: int, current: RoleSettings
) -> ChildDriver:
    """Return the driver of a worker; `program` is the command line before the role's name."""
    settings = current.of(role)
    run_dir = locations.run_directory(settings)
    path, further = worker_lock(run_dir, role, instance), lock_of(run_dir, role, instance)

    def launch(blameless: bool) -> ChildProcess:
        if is_held(further):
            raise OSError(f"rsky-{role}@{instance} runs already: both would be one consumer")
        lock = _free_lock(path)
        try:
            return spawn_worker(
                program, role, instance, current.of(role), lock, blameless=blameless
            )
        finally:
            lock.let_go()

    return ChildDriver(role, instance, worker_policy(settings), launch)


def worker_policy(settings: Settings) -> Policy:
    """Return the rules for role workers: drain, only finish a write, print the stacks, kill."""
    return Policy(
        escalation=(
            StopStep(signal.SIGTERM, settings.stop_timeout_seconds),
            # A second TERM at once would merge with the first.
            StopStep(signal.SIGINT, ESCALATED_SECONDS),
            StopStep(signal.SIGQUIT, STACKS_SECONDS),
            StopStep(signal.SIGKILL, KILL_SECONDS),
        ),
        ready_timeout=settings.ready_timeout_seconds,
    )


def store_policy(stop_signal: int, settings: Settings) -> Policy:
    """Return the rules for an embedded store: restarted sooner than a worker, because all workers
    wait for it, and given more time to stop, because it writes its data to disk."""
    gentle = StopStep(signal.Signals(stop_signal), 60.0)
    # PostgreSQL: without a checkpoint, recovers from its log.
    immediate = (StopStep(signal.SIGQUIT, 10.0),) if stop_signal == signal.SIGINT else ()
    return Policy(
        escalation=(gentle, *immediate, StopStep(signal.SIGKILL, KILL_SECONDS)),
        ready_timeout=max(300, settings.ready_timeout_seconds),  # replays its log after a crash
        give_up_wait=GIVE_UP_SECONDS,
        base=0.2,
        cap=10.0,
        crash_budget=10,
        final_codes=frozenset(),
        dependency_codes=frozenset(),
    )


def _free_lock(path: Path) -> Lock:
    lock = acquire(path)
    if lock is None:
        raise OSError(f"another process still holds {path}")
    return lock
