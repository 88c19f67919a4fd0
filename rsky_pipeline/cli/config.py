"""`rsky-pipeline config`: show and check the configuration."""

from typing import Any

import click

from rsky_pipeline.cli.options import configuration_options, loaded
from rsky_pipeline.cli.output import print_json, print_table
from rsky_pipeline.configuration.report import effective


@click.group()
def command() -> None:
    """Show or check the configuration."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@configuration_options
def show(as_json: bool, **parameters: Any) -> None:
    """Print every setting, its value (passwords hidden) and where it came from."""
    report = effective(loaded(parameters))
    if as_json:
        print_json(report)
        return
    rows = [
        (name, "" if item["value"] is None else _shown(item["value"]), item["origin"])
        for name, item in report.items()
    ]
    print_table(("SETTING", "VALUE", "FROM"), rows)


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@configuration_options
def check(as_json: bool, **parameters: Any) -> None:
    """Exit with 0 if the configuration is good, or with 2 and a line for each problem."""
    result = loaded(parameters)
    if as_json:
        print_json({"ok": True, "remarks": list(result.remarks)})
        return
    for remark in result.remarks:
        click.echo(f"remark: {remark}", err=True)
    click.echo("the configuration is good")


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
