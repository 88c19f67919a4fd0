"""`rsky-pipeline deployments`: what was deployed, and how it went."""

from datetime import datetime
from typing import Any

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.moving import directories, json_option
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.output import fail, print_json, print_table


@click.group()
def command() -> None:
    """List what was deployed and how it went."""


@command.command("list")
@json_option
@configuration_options
def list_deployments(as_json: bool, **parameters: Any) -> None:
    """List deployments and rollbacks, the newest last; data_dir/deployments.jsonl has them."""
    from rsky_pipeline.embedded.locations import data_directory
    from rsky_pipeline.operations.deployment.journal import Journal

    journal = Journal(data_directory(directories(parameters)))
    try:
        entries = journal.entries()
    except OSError as error:
        raise fail(f"{journal.path}: {error.strerror}", ExitCode.NO_PERMISSION) from error
    if as_json:
        print_json({"deployments": [entry.document() for entry in entries]})
        return
    rows = [
        (
            entry.id,
            datetime.fromtimestamp(entry.began).astimezone().isoformat(timespec="seconds"),
            entry.plan["kind"],
            entry.outcome or "unfinished",
            entry.plan["from"],
            entry.plan["to"],
            entry.reason or "-",
        )
        for entry in entries
    ]
    print_table(("ID", "BEGAN", "KIND", "OUTCOME", "FROM", "TO", "REASON"), rows)
