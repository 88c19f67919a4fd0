"""`rsky-pipeline restart`: fresh processes, of a role or of everything."""

from typing import Any

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.moving import directories, finish, json_option, manager_option, teller
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.output import fail
from rsky_pipeline.cli.running import explained
from rsky_pipeline.configuration.topology import ROLE_NAMES


@click.command()
@click.argument("role", type=click.Choice(ROLE_NAMES), required=False)
@click.option("--ordered", is_flag=True, help="All roles: stop consumers first, start producers "
              "first, each step verified.")  # fmt: skip
@click.option("--rolling", is_flag=True, help="With --ordered: replace one process at a time.")
@manager_option
@json_option
@configuration_options
def command(
    role: str | None, ordered: bool, rolling: bool, choice: str, as_json: bool, **parameters: Any
) -> None:
    """Restart the workers of a role, one at a time, each ready before the next; or all roles.

    Supervisors and embedded stores keep running. Exit codes: 0 restarted, 1 given up, 3 not
    running, 4 no answer, 5 a process had to be killed.
    """
    from rsky_pipeline.operations.ordered import flow

    if (role is None) == (not ordered):
        raise fail("give a role, or --ordered for all of them", ExitCode.USAGE)
    settings = directories(parameters)
    tell = teller(as_json)
    with explained():
        manager = flow.manager_of(settings, choice)
        running = manager.running()
        wanted = [role] if role else list(running)
        if not wanted or not set(wanted) <= set(running):
            what = role if role and running else "pipeline"
            raise fail(f"no {what} is running in {settings.run_dir}", ExitCode.NOT_RUNNING)
        if role or rolling:
            movement = flow.restart_rolling(manager, roles=wanted, tell=tell)
        else:
            movement = flow.stop(manager, settings, roles=wanted, tell=tell)
            movement.steps += flow.start(manager, roles=wanted, tell=tell).steps
    finish(movement, as_json)
