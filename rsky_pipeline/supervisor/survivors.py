"""Workers and stores that outlived their supervisor: waited for, then ended.

They saw the end of their liveness pipe and are draining. Starting beside them would give two
processes one name in the consumer groups, or two servers one directory.
"""

import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from rsky_pipeline.runtime.lock import Holder, holder, is_held
from rsky_pipeline.supervisor.errors import AlreadyRunning

POLL_SECONDS = 0.1
AFTER_KILL_SECONDS = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Survivor:
    """What may have survived: the lock it would hold, and how it is treated."""

    name: str
    lock: Path
    patience: float  # seconds it gets to end by itself
    stop_signal: int | None = None  # sent at once to what does not end by itself (stores)


def suspects(run_dir: Path, roles: Sequence[str], patience: float) -> list[Survivor]:
    """Return a survivor for each lock file of a worker of these roles, present or past."""
    return [
        Survivor(path.stem, path, patience)
        for role in roles
        for path in sorted((run_dir / "locks").glob(f"{role}-*.lock"))
    ]


async def settle(survivors: Sequence[Survivor]) -> list[str]:
    """Return when none of them runs any more; the names of those that had to be killed.

    Raises AlreadyRunning when one cannot be ended.
    """
    killed: list[str] = []
    immortal: list[Survivor] = []
    async with trio.open_nursery() as nursery:
        for survivor in survivors:
            if is_held(survivor.lock):
                nursery.start_soon(_end, survivor, killed, immortal)
    if immortal:
        names = ", ".join(f"{one.name} (lock {one.lock})" for one in immortal)
        raise AlreadyRunning(f"of a previous supervisor still run: {names}; end them by hand")
    return sorted(killed)


async def _end(survivor: Survivor, killed: list[str], immortal: list[Survivor]) -> None:
    process = holder(survivor.lock)
    details = {"child": survivor.name, "pid": process.pid if process else None}
    log.warning("waiting for a survivor of the previous supervisor", extra=details)
    if survivor.stop_signal is not None:
        _signal(process, survivor.stop_signal)
    if await _freed(survivor.lock, survivor.patience):
        log.info("the survivor has ended", extra=details)
        return
    log.error("killing a survivor that did not end", extra=details)
    _signal(holder(survivor.lock), signal.SIGKILL)
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


def _signal(process: Holder | None, number: int) -> None:
    """Signal exactly the process that is meant: a pidfd cannot hit a successor of the pid."""
    if process is None:
        return
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if process.runs():
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)
