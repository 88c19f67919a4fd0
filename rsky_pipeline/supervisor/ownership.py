"""What a supervisor must own before it touches anything: its directories, roles and stores."""

import resource
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.embedded import locations
from rsky_pipeline.embedded.errors import EmbeddedStoreError
from rsky_pipeline.runtime.errors import PermissionProblem
from rsky_pipeline.runtime.lock import Lock, acquire, holder
from rsky_pipeline.supervisor.errors import AlreadyRunning

WANTED_FILES = 65_536


def take(settings: Settings, roles: Sequence[str], *, embeds: bool) -> ExitStack:
    """Make the directories and take the locks; closing the result lets go of them.

    Raises AlreadyRunning or PermissionProblem.
    """
    run_dir = locations.run_directory(settings)
    data_dir = locations.data_directory(settings)
    _make_directories([*([data_dir] if embeds else []), run_dir])
    with ExitStack() as taken:
        for role in roles:
            path = run_dir / "locks" / f"supervisor.{role}.lock"
            refusal = f"another supervisor{{}} already runs the {role} in {run_dir}"
            taken.callback(_take(path, refusal).let_go)
        if embeds:
            refusal = (
                f"another supervisor{{}} runs the embedded stores in {data_dir}; several "
                "supervisors need redis_url and database_url (those of the running stores work too)"
            )
            taken.callback(_take(data_dir / "locks" / "stores.lock", refusal).let_go)
        return taken.pop_all()


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us; children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _take(path: Path, refusal: str) -> Lock:
    lock = acquire(path)
    if lock is None:
        other = holder(path)
        raise AlreadyRunning(refusal.format(f" (pid {other.pid})" if other else ""))
    lock.name_us()
    return lock


def _make_directories(directories: Sequence[Path]) -> None:
    try:
        for directory in directories:
            locations.make_private(directory)
        if directories:
            locations.make_private(locations.socket_directory(directories[-1]))
    except EmbeddedStoreError as error:
        raise PermissionProblem(str(error)) from error
