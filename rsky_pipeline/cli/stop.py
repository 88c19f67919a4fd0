"""`rsky-pipeline stop`: stop a running pipeline, consumers first."""

from typing import Any

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.moving import (
    directories,
    finish,
    json_option,
    manager_option,
    roles_option,
    teller,
)
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.output import fail
from rsky_pipeline.cli.running import explained
from rsky_pipeline.configuration.topology import ROLE_NAMES


@click.command()
@click.option(
    "--ordered",
    is_flag=True,
    help="Verify each step in Redis before the next: consumers drained, cursors stored; also over "
    "several supervisors and systemd units.",
)
@click.option(
    "--drain",
    is_flag=True,
    help="For planned moves, the other order: the producer first, and each consumer when it has "
    "read and applied everything. Implies --ordered.",
)
@click.option(
    "--timeout",
    "timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Skip the draining after this long and kill 10 s later (with systemd: kill at once). "
    "With --drain: give up after this long for each role, and leave it running. Default: "
    "stop_timeout_seconds for each role; no limit with --drain.",
)
@roles_option
@manager_option
@json_option
@configuration_options
def command(
    ordered: bool, drain: bool, timeout: float | None, roles: tuple[str, ...], choice: str,
    as_json: bool, **parameters: Any,
) -> None:  # fmt: skip
    """Stop a running pipeline: indexer, backfiller, ingester, each drained before the next.

    Prints each step when it is done. Exit codes: 0 stopped, 1 a verification failed, 3 nothing was
    running, 4 no answer, 5 a process had to be killed.
    """
    from rsky_pipeline.operations.ordered import flow

    settings = directories(parameters)
    tell = teller(as_json)
    with explained():
        manager = flow.manager_of(settings, choice)
        if not manager.running():
            _end_what_is_left(settings, roles, tell)
        each_step = ordered or drain or bool(roles)  # has the time limit, and is verified
        movement = flow.stop(
            manager, settings, roles=roles or ROLE_NAMES, drain=drain, verify=each_step, tell=tell,
            deadline=timeout if each_step else None, total=None if each_step else timeout,
        )  # fmt: skip
        if not manager.running():
            flow.close(manager, movement, tell, None if each_step else timeout)
    finish(movement, as_json)


def _end_what_is_left(settings: Any, roles: tuple[str, ...], tell: Any) -> None:
    """End supervisors without a running role; if there is none either, nothing is running."""
    from rsky_pipeline.embedded.locations import run_directory
    from rsky_pipeline.supervisor import client

    left = client.find(run_directory(settings))
    if roles:
        raise fail(f"no {' or '.join(roles)} is running", ExitCode.NOT_RUNNING)
    client.stop_everything(left, timeout=None, on_step=tell)
    raise click.exceptions.Exit(ExitCode.OK)
