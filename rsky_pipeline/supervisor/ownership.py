"""Ownership of directories, roles and stores, which a supervisor takes before it starts a child.

Locks exclude two supervisors of the same roles. Workers and stores that outlive their supervisor
keep locks of their own: their liveness pipe has closed and they are draining. Starting new ones
beside them would give two processes one consumer name, or two servers one directory. So the
supervisor waits for them, and kills them when they take too long.
"""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.embedded import locations
from rsky_pipeline.embedded.errors import EmbeddedStoreError
from rsky_pipeline.runtime.errors import PermissionDeniedError, UnavailableError
from rsky_pipeline.runtime.further_workers import lock_of
from rsky_pipeline.runtime.lock import Lock, acquire, holders, is_held, lacks_room
from rsky_pipeline.supervisor.errors import AlreadyRunningError

POLL_SECONDS = 0.1
AFTER_KILL_SECONDS = 10.0

log = logging.getLogger(__name__)


def take(settings: Settings, roles: Sequence[str], *, embeds: bool) -> ExitStack:
    """Make the directories and take the locks; closing the result lets go of them.

    Raises AlreadyRunningError, PermissionDeniedError and UnavailableError.
    """
    run_dir = locations.run_directory(settings)
    data_dir = locations.data_directory(settings)
    _make_directories([*([data_dir] if embeds else []), run_dir])
    with ExitStack() as taken:
        for role in roles:
            path = run_dir / "locks" / f"supervisor.{role}.lock"
            refusal = f"another supervisor{{}} already runs the {role} in {run_dir}"
            taken.callback(_take(path, refusal).let_go)
            for instance in range(1, settings.workers(role) + 1):
                require_no_further(run_dir, role, instance)
        if embeds:
            refusal = (
                f"another supervisor{{}} runs the embedded stores in {data_dir}; several "
                "supervisors need redis_url and database_url (those of the running stores work too)"
            )
            taken.callback(_take(data_dir / "locks" / "stores.lock", refusal).let_go)
        return taken.pop_all()


def require_no_further(run_dir: Path, role: str, instance: int) -> None:
    """Raise AlreadyRunningError where a worker without a supervisor has this number.

    Both would be one consumer.
    """
    lock = lock_of(run_dir, role, instance)
    if is_held(lock):
        pids = holders(lock)
        raise AlreadyRunningError(
            f"{role} {instance} runs without a supervisor{f' (pid {pids[0]})' if pids else ''}, as "
            f"rsky-{role}@{instance} does: stop it, or give it a number above {role}_workers "
            f"(which includes {instance})"
        )


@dataclass(frozen=True, slots=True)
class Survivor:
    """A worker or store that may have outlived its supervisor: its lock, and how it is ended."""

    name: str
    lock: Path
    grace: float  # seconds it gets to end by itself
    stop_signal: int | None = None  # sent at once, to stores: they do not end by themselves


def suspects(run_dir: Path, roles: Sequence[str], grace: float) -> list[Survivor]:
    """Return a survivor for each lock file of a worker of these roles, present or past."""
    return [
        Survivor(path.stem, path, grace)
        for role in roles
        for path in sorted((run_dir / "locks").glob(f"{role}-*.lock"))
    ]


async def await_survivors(survivors: Sequence[Survivor]) -> list[str]:
    """Return when none of them runs any more; the names of those that had to be killed.

    Raises AlreadyRunningError when one cannot be ended.
    """
    killed: list[str] = []
    immortal: list[Survivor] = []
    async with trio.open_nursery() as nursery:
        for survivor in survivors:
            if is_held(survivor.lock):
                nursery.start_soon(_end, survivor, killed, immortal)
    if immortal:
        names = ", ".join(f"{one.name} (lock {one.lock})" for one in immortal)
        raise AlreadyRunningError(f"of a previous supervisor still run: {names}; end them by hand")
    return sorted(killed)


def _take(path: Path, refusal: str) -> Lock:
    lock = acquire(path)
    if lock is None:
        others = holders(path)
        raise AlreadyRunningError(refusal.format(f" (pid {others[0]})" if others else ""))
    return lock


def _make_directories(directories: Sequence[Path]) -> None:
    try:
        for directory in directories:
            locations.make_private(directory)
        if directories:
            locations.make_private(locations.socket_directory(directories[-1]))
    except EmbeddedStoreError as error:
        if lacks_room(error.__cause__):
            raise UnavailableError(str(error)) from error
        raise PermissionDeniedError(str(error)) from error


async def _end(survivor: Survivor, killed: list[str], immortal: list[Survivor]) -> None:
    pids = holders(survivor.lock)
    details = {"child": survivor.name, "pid": pids[0] if pids else None}
    log.warning("waiting for a survivor of the previous supervisor", extra=details)
    if survivor.stop_signal is not None:
        _signal(survivor, pids[:1], survivor.stop_signal)  # it ends its children
    if await _freed(survivor.lock, survivor.grace):
        log.info("the survivor has ended", extra=details)
        return
    log.error("killing a survivor that did not end", extra=details)
    # All of them: when a PostgreSQL was killed, processes of it may wait for each other for ever.
    _signal(survivor, holders(survivor.lock), signal.SIGKILL)
    if await _freed(survivor.lock, AFTER_KILL_SECONDS):
        killed.append(survivor.name)
    else:
        immortal.append(survivor)


async def _freed(lock: Path, seconds: float) -> bool:
    with trio.move_on_after(seconds):
        while is_held(lock):  # noqa: ASYNC110  # the kernel has no event for a free flock
            await trio.sleep(POLL_SECONDS)
        return True
    return False


def _signal(survivor: Survivor, pids: Sequence[int], number: int) -> None:
    """Signal exactly the processes that are meant: a pidfd cannot hit a successor of the pid."""
    for pid in pids:
        with suppress(ProcessLookupError), _pidfd(pid) as descriptor:
            if pid in holders(survivor.lock):
                signal.pidfd_send_signal(descriptor, number)


@contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
