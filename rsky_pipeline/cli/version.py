"""`rsky-pipeline version`: the build, for people or for programs."""

from dataclasses import asdict

import click

from rsky_pipeline.cli.output import print_json
from rsky_pipeline.observability.build import build, has_compiled_readers


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """Print version, commit and build time."""
    if as_json:
        compiled = {"compiled": has_compiled_readers()}
        print_json({"program": "rsky-pipeline", **asdict(build()), **compiled})
    else:
        click.echo(f"rsky-pipeline {build().describe()}")
        if not has_compiled_readers():
            click.echo("The compiled readers are missing; everything works, but slower.")
