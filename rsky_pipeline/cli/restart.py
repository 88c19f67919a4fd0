"""`rsky-pipeline restart`: fresh worker processes, one at a time."""

from typing import Any

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.output import fail
from rsky_pipeline.cli.running import explained, run_directory
from rsky_pipeline.configuration.topology import ROLE_NAMES


@click.command()
@click.argument("role", type=click.Choice(ROLE_NAMES))
@configuration_options
def command(role: str, **parameters: Any) -> None:
    """Restart the workers of a role, one at a time, each ready before the next.

    Exit codes: 0 restarted, 1 given up, 3 not running, 4 no answer.
    """
    from rsky_pipeline.supervisor import client

    directory = run_directory(parameters)
    with explained():
        those = [each for each in client.find(directory) if role in each.roles]
        if not those:
            raise fail(f"no {role} is running in {directory}", ExitCode.NOT_RUNNING)
        for each in those:
            client.ask(each.path, "restart", on_step=click.echo, wait_seconds=None, roles=[role])
