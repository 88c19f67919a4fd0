"""`rsky-pipeline config`: show and check the configuration."""

import click

from rsky_pipeline.cli.command import Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import line, print_json, print_table, say
from rsky_pipeline.configuration.load import ConfigurationError
from rsky_pipeline.configuration.report import effective


@click.group()
def command() -> None:
    """Show or check the configuration."""


@operator_command(command)
def show(run: Invocation) -> None:
    """Print every setting, its value and its origin; passwords are hidden."""
    report = effective(run.loaded)
    rows = [(name, _shown(item["value"]), item["origin"]) for name, item in report.items()]
    run.answer(report, lambda: print_table(("SETTING", "VALUE", "FROM"), rows))


@operator_command(command)
def check(run: Invocation) -> int:
    """Check the configuration.

    Exit with 0 if it is valid, or with 2 and a line for each problem.
    """
    try:
        result = run.loaded
    except ConfigurationError as error:
        if not run.as_json:
            raise
        print_json({"ok": False, "problems": list(error.problems), "remarks": []})
        return ExitCode.USAGE
    source = f"the file {result.file.path}" if result.file else "no file"
    good = f"the configuration is good ({source}, environment, flags)"
    document = {"ok": True, "problems": [], "remarks": list(result.remarks)}
    if not run.as_json:
        for remark in result.remarks:
            say(f"remark: {remark}")
    run.answer(document, lambda: line(good))
    return ExitCode.OK


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
