"""`rsky-pipeline version`: the build, for people or for programs."""

from dataclasses import asdict

import click

from rsky_pipeline.cli.output import print_json
from rsky_pipeline.observability.build import build


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """Print version, commit and build time."""
    if as_json:
        print_json({"program": "rsky-pipeline", **asdict(build())})
    else:
        click.echo(f"rsky-pipeline {build().describe()}")
