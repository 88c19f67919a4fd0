"""`rsky-pipeline log-level`: log more or less, without a restart."""

import click

from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import line
from rsky_pipeline.configuration.settings import LOG_LEVELS
from rsky_pipeline.configuration.topology import ROLE_NAMES

ALL, SUPERVISOR = "all", "supervisor"


@operator_command(name="log-level")
@click.argument("role", type=click.Choice([ALL, SUPERVISOR, *ROLE_NAMES]))
@click.argument("level", type=click.Choice(LOG_LEVELS))
def command(run: Invocation, role: str, level: str) -> int:
    """Change the log level of running workers, of the supervisors, or of all.

    It lasts until a restart of the supervisor, or until the supervisor gets SIGHUP (`systemctl
    reload`), which applies the level of the configuration. Workers without a supervisor
    (rsky-indexer@2.service) are not reached. Exit codes: 0 changed, 3 nothing is running.
    """
    from rsky_pipeline.supervisor import client

    roles = [role] if role in ROLE_NAMES else [] if role == SUPERVISOR else list(ROLE_NAMES)
    changed = []
    for each in client.find(run.run_directory):
        own = [name for name in roles if name in each.roles]
        if own or role in (ALL, SUPERVISOR):
            with_own = role in (ALL, SUPERVISOR)
            client.ask(each.path, "log_level", roles=own, level=level, supervisor=with_own)
            changed += [*own, *([f"supervisor of {', '.join(each.roles)}"] if with_own else [])]
    if not changed:
        raise CommandError(f"no {role} is running", ExitCode.NOT_RUNNING)

    def show() -> None:
        for name in changed:
            line(f"{name}: {level}")

    run.answer({"level": level, "changed": changed}, show)
    return ExitCode.OK
