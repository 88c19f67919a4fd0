"""`rsky-pipeline stop`: stop a running pipeline, consumers first."""

from typing import Any

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.running import explained, run_directory


@click.command()
@click.option(
    "--ordered",
    is_flag=True,
    help="Keep the order over several supervisors too: a role is gone everywhere before the role "
    "that feeds it is told. (A single supervisor always keeps the order.)",
)
@click.option(
    "--timeout",
    "timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Skip the draining after this long and kill 10 s later. Default: stop_timeout_seconds "
    "for each role.",
)
@configuration_options
def command(ordered: bool, timeout: float | None, **parameters: Any) -> None:
    """Stop a running pipeline: indexer, backfiller, ingester, each drained before the next.

    Prints each step when it is done. Exit codes: 0 stopped, 3 nothing was running, 4 no answer,
    5 a process had to be killed.
    """
    from rsky_pipeline.supervisor import client

    directory = run_directory(parameters)
    with explained():
        forced = client.stop_everything(
            client.find(directory), ordered=ordered, timeout=timeout, on_step=click.echo
        )
    if forced:
        raise click.exceptions.Exit(ExitCode.FORCED)
