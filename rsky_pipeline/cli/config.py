"""`rsky-pipeline config`: show and check the configuration."""

from typing import Any

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import attempt, configuration_options, loaded
from rsky_pipeline.cli.output import print_json, print_table, say
from rsky_pipeline.configuration.load import ConfigurationError
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
    rows = [(name, _shown(item["value"]), item["origin"]) for name, item in report.items()]
    print_table(("SETTING", "VALUE", "FROM"), rows)


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@configuration_options
def check(as_json: bool, **parameters: Any) -> None:
    """Exit with 0 if the configuration is good, or with 2 and a line for each problem."""
    if not as_json:
        result = loaded(parameters)
        for remark in result.remarks:
            say(f"remark: {remark}")
        source = f"the file {result.file.path}" if result.file else "no file"
        click.echo(f"the configuration is good ({source}, environment, flags)")
        return
    try:
        remarks = attempt(parameters).remarks
    except ConfigurationError as error:
        print_json({"ok": False, "problems": list(error.problems), "remarks": []})
        raise click.exceptions.Exit(ExitCode.USAGE) from error
    print_json({"ok": True, "problems": [], "remarks": list(remarks)})


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
