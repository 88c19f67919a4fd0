"""`rsky-pipeline log-level`: log more or less, without a restart."""

import time
from typing import TYPE_CHECKING

import click

from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import line, say
from rsky_pipeline.configuration.settings import LOG_LEVELS
from rsky_pipeline.configuration.topology import ROLE_NAMES

if TYPE_CHECKING:
    from rsky_pipeline.runtime.further_workers import FurtherWorker

ALL, SUPERVISOR = "all", "supervisor"
ANSWER_SECONDS = 5.0


@operator_command(name="log-level")
@click.argument("role", type=click.Choice([ALL, SUPERVISOR, *ROLE_NAMES]))
@click.argument("level", type=click.Choice(LOG_LEVELS))
def command(run: Invocation, role: str, level: str) -> int:
    """Change the log level of running workers, of the supervisors, or of all.

    It lasts until a restart of the supervisor, or until the supervisor gets SIGHUP (`systemctl
    reload`), which applies the level of the configuration; so it does for workers without a
    supervisor (rsky-indexer@2.service). Exit codes: 0 changed, 3 nothing is running, 4 a worker
    does not answer.
    """
    from rsky_pipeline.runtime.further_workers import further_workers
    from rsky_pipeline.supervisor import client
    from rsky_pipeline.supervisor.errors import NotRunningError

    roles = [role] if role in ROLE_NAMES else [] if role == SUPERVISOR else list(ROLE_NAMES)
    changed, silent = list[str](), list[str]()
    further = [each for each in further_workers(run.run_directory) if each.role in roles]
    try:
        supervisors = client.find(run.run_directory)
    except NotRunningError:
        if not further:
            raise
        supervisors = []
    for each in supervisors:
        own = [name for name in roles if name in each.roles]
        if own or role in (ALL, SUPERVISOR):
            with_own = role in (ALL, SUPERVISOR)
            client.ask(each.path, "log_level", roles=own, level=level, supervisor=with_own)
            changed += [*own, *([f"supervisor of {', '.join(each.roles)}"] if with_own else [])]
    for worker in further:
        (changed if _asked(worker, level) else silent).append(worker.name)
    if silent:
        say(f"{', '.join(silent)}: no answer")
    if not changed and not silent:
        raise CommandError(f"no {role} is running", ExitCode.NOT_RUNNING)

    def show() -> None:
        for name in changed:
            line(f"{name}: {level}")

    run.answer({"level": level, "changed": changed, "silent": silent}, show)
    return ExitCode.UNREACHABLE if silent else ExitCode.OK


def _asked(worker: "FurtherWorker", level: str) -> bool:
    """Ask a worker without a supervisor, which looks once a second; return whether it answers."""
    from rsky_pipeline.runtime.further_workers import ask_for_level, has_answered, take_back

    try:
        ask_for_level(worker, level)
    except OSError as error:
        raise CommandError(
            f"{worker.name} cannot be asked: {error.strerror}; run this as its account or as root",
            ExitCode.NO_PERMISSION,
        ) from error
    deadline = time.monotonic() + ANSWER_SECONDS
    while not has_answered(worker):
        if time.monotonic() > deadline:
            take_back(worker)
            return False
        time.sleep(0.1)
    return True
