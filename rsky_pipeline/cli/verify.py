"""`rsky-pipeline verify`: is the pipeline well?"""

import sys
from typing import TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.durations import DURATION
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.output import print_json, say
from rsky_pipeline.cli.store import resolved
from rsky_pipeline.configuration.topology import ROLE_NAMES

if TYPE_CHECKING:
    from rsky_pipeline.operations.verification.report import Report

_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "cyan"}


@click.command()
@click.option("--window", type=DURATION, default="30s", show_default=True, metavar="DURATION",
              help="How long rates are measured.")  # fmt: skip
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLE_NAMES),
              help="What has to run here; may be repeated. Default: every role.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Warnings end with exit code 1.")
@click.option("--quiet", is_flag=True, help="Show only what is not good.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@configuration_options
def command(
    window: float, roles: tuple[str, ...], strict: bool, quiet: bool, as_json: bool,
    **parameters: Any,
) -> None:  # fmt: skip
    """Check a running pipeline: processes, metrics, streams, rates, latency, database, relays.

    Exit codes: 0 passed (warnings included, unless --strict), 1 warnings with --strict, 2 wrong
    option, 6 something failed.
    """
    from rsky_pipeline.operations.verification.run import verify

    settings = resolved(parameters)
    report = verify(settings, window, roles=roles or ROLE_NAMES, on_progress=say)
    if as_json:
        print_json(report.document())
    else:
        show(report, quiet=quiet)
    raise click.exceptions.Exit(exit_code(report, strict=strict))


def exit_code(report: "Report", *, strict: bool) -> int:
    """Return how a script is told."""
    if report.status == "fail":
        return ExitCode.DIFFERENCES
    return ExitCode.FAILED if strict and report.status == "warn" else ExitCode.OK


def show(report: "Report", *, quiet: bool = False) -> None:
    """Print a line a check, and a remedy below each that is not good."""
    width = max((len(check.name) for check in report.checks), default=0)
    colour = None if sys.stdout.isatty() else False
    for check in report.checks:
        if quiet and check.status in ("pass", "skip"):
            continue
        status = click.style(f"{check.status:<4}", fg=_COLOURS[check.status])
        click.echo(f"{status}  {check.name:<{width}}  {check.figure}", color=colour)
        if check.remedy:
            click.echo(f"{'':<{width + 8}}to do: {check.remedy}")
    counts = ", ".join(
        f"{len(report.of(status))} {status}" for status in ("pass", "warn", "fail", "skip")
    )
    click.echo(f"{report.status}: {counts}")
