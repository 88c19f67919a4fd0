"""`rsky-pipeline restart`: fresh processes, of a role or of everything."""

import click

from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.moving import finish, manager_option, not_running
from rsky_pipeline.configuration.topology import ROLE_NAMES


@operator_command(name="restart")
@click.argument("role", type=click.Choice(ROLE_NAMES), required=False)
@click.option("--ordered", is_flag=True, help="All roles: stop consumers first, start producers "
              "first, each step verified.")  # fmt: skip
@click.option("--rolling", is_flag=True, help="With --ordered: replace one process at a time.")
@manager_option
def command(run: Invocation, role: str | None, ordered: bool, rolling: bool, choice: str) -> int:
    """Restart the workers of a role, one at a time, each ready before the next; or all roles.

    The configuration is read again for them; where a change needs another start, that is refused
    with the reason. Supervisors and embedded stores keep running. Exit codes: 0 restarted, 1 given
    up or refused, 3 not running, 4 no answer, 5 a process had to be killed.
    """
    from rsky_pipeline.configuration.advice import advised
    from rsky_pipeline.operations.ordered import flow

    if (role is None) == (not ordered):
        raise CommandError("give a role, or --ordered for all of them", ExitCode.USAGE)
    manager = flow.manager_of(run.loaded, run.settings, choice)
    running = manager.running()
    wanted = [role] if role else list(running)
    if not wanted or not set(wanted) <= set(running):
        one = ("--role", role) if role and running else ()
        text = f"no {role if one else 'pipeline'} is running in {run.settings.run_dir}; "
        raise not_running(run, manager, f"{text}to do: {advised('start', *one)}")
    manager.reload(wanted, run.tell)
    if role or rolling:
        movement = flow.restart_rolling(manager, roles=wanted, tell=run.tell)
    else:
        movement = flow.stop(manager, run.settings, roles=wanted, tell=run.tell)
        movement.steps += flow.start(manager, roles=wanted, tell=run.tell).steps
    return finish(run, movement)
