"""`rsky-pipeline worker`: one worker process. The supervisor starts it; people can, too.

By hand, it needs redis_url and database_url, reads the configuration as every command does, and
notifies systemd of its readiness if that started it.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

import click

from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.configuration.topology import ROLE_NAMES

if TYPE_CHECKING:
    from rsky_pipeline.configuration.settings import Settings


@operator_command(name="worker", json=False)
@click.argument("role", type=click.Choice(ROLE_NAMES))
@click.option("--instance", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--settings-fd", type=int, help="Read the settings from this descriptor.")
@click.option("--events-fd", type=int, help="Write events to this descriptor.")
@click.option("--liveness-fd", type=int, help="Drain when this descriptor ends.")
def command(
    run: Invocation,
    role: str,
    instance: int,
    settings_fd: int | None,
    events_fd: int | None,
    liveness_fd: int | None,
) -> None:
    """Run one worker of a role."""
    from rsky_pipeline.runtime.channel import WorkerPipes, read_settings, report_end
    from rsky_pipeline.runtime.worker import RoleMain, run_worker

    settings = read_settings(settings_fd) if settings_fd is not None else _own(run, role, instance)
    pipes = WorkerPipes(events_fd, liveness_fd)
    try:
        main: RoleMain = import_module(f"rsky_pipeline.{role}.role").run
    except Exception as error:
        report_end(pipes, error)  # else the supervisor would know a code alone
        raise
    code = run_worker(
        main, settings=settings, role=role, instance=instance, pipes=pipes,
        read_log_level=(lambda: run.read_again().log_level) if settings_fd is None else None,
    )  # fmt: skip
    sys.exit(code)


def _own(run: Invocation, role: str, instance: int) -> "Settings":
    from rsky_pipeline.embedded.locations import resolve_directories

    settings = resolve_directories(run.loaded.settings)
    missing = [name for name in ("redis_url", "database_url") if not getattr(settings, name)]
    if missing:
        names = " and ".join(missing)
        raise CommandError(
            f"a worker run by hand needs {names}; `run` starts its own", ExitCode.USAGE
        )
    _require_free(settings, role, instance)
    return settings


def _require_free(settings: "Settings", role: str, instance: int) -> None:
    """Refuse to be a worker that runs already, under a supervisor or not: both would be one
    consumer, and take its pending entries from each other."""
    from contextlib import suppress

    from rsky_pipeline.embedded.locations import run_directory
    from rsky_pipeline.runtime.errors import WorkerError
    from rsky_pipeline.runtime.further_workers import lock_of
    from rsky_pipeline.runtime.lock import acquire, holders, is_held
    from rsky_pipeline.supervisor.children import worker_lock

    run_dir = run_directory(settings)
    lock, own = worker_lock(run_dir, role, instance), lock_of(run_dir, role, instance)
    free = True
    with suppress(WorkerError):  # a folder that cannot be written: status lacks the worker, too
        free = acquire(own) is not None  # held as long as this process lives
    if not free or is_held(lock):
        pids = holders(lock if free else own)
        raise CommandError(
            f"{role} {instance} runs already{f' (pid {pids[0]})' if pids else ''}: give a further "
            f"worker a number above {role}_workers ({settings.workers(role)})",
            ExitCode.ALREADY_RUNNING,
        )
