"""`rsky-pipeline db`: create and check the database schema."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rsky_pipeline.cli.database import told
from rsky_pipeline.cli.db_compare import compare
from rsky_pipeline.cli.db_recount import recount
from rsky_pipeline.cli.db_rejected import rejected
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.output import print_json, say

if TYPE_CHECKING:
    from rsky_pipeline.database.schema import Difference

Result = TypeVar("Result")


@click.group()
def command() -> None:
    """Create and check the schema, and check and repair what is in it."""


for subcommand in (recount, compare, rejected):
    command.add_command(subcommand)


@command.command()
@click.option(
    "--dry-run", is_flag=True, help="Only say what would be done; reads, changes nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@configuration_options
def init(dry_run: bool, as_json: bool, **parameters: Any) -> None:
    """Create what is missing; safe to repeat, and on an official AppView's database.

    Exit with 6 if the database still differs afterwards from what the pipeline needs.
    """
    from rsky_pipeline.database import schema

    if dry_run:
        would = _on_database(parameters, schema.pending)
        if as_json:
            print_json({"pending": would})
        else:
            click.echo("\n".join(f"would {line}" for line in would) or "nothing is to be done")
        return
    done, differences = _on_database(
        parameters, lambda url, name: (schema.initialise(url, name), schema.check(url, name))
    )
    if as_json:
        print_json({"done": done, "differences": [asdict(item) for item in differences]})
    else:
        for line in done or ["everything is there already"]:
            click.echo(line)
        if _count_errors(differences):
            _print_differences(differences)
    _exit(differences)


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@configuration_options
def check(as_json: bool, **parameters: Any) -> None:
    """Compare the schema with the expected one; exit with 6 if the pipeline misses something.

    It only reads. Warnings are what the pipeline works in spite of.
    """
    from rsky_pipeline.database import schema

    differences = _on_database(parameters, schema.check)
    if as_json:
        ok = not _count_errors(differences)
        print_json({"ok": ok, "differences": [asdict(item) for item in differences]})
    else:
        _print_differences(differences)
    _exit(differences)


def _on_database(parameters: dict[str, Any], action: Callable[[str, str], Result]) -> Result:
    """Call with the URL and the schema; a failure is one line and an exit code."""
    with told(parameters) as settings:
        return action(settings.database_url or "", settings.database_schema)


def _print_differences(differences: "Sequence[Difference]") -> None:
    for item in differences:
        click.echo(f"{item.severity}: {item.subject}")
        click.echo(f"  expected: {item.expected or 'nothing'}")
        click.echo(f"  found:    {item.found or 'nothing'}")
        click.echo(f"  to do:    {item.advice}")
    errors = _count_errors(differences)
    warnings = len(differences) - errors
    if errors:
        say(f"errors: {errors}, warnings: {warnings}")
    else:
        click.echo(f"the schema is good{f' (warnings: {warnings})' if warnings else ''}")


def _count_errors(differences: "Sequence[Difference]") -> int:
    return sum(item.severity == "error" for item in differences)


def _exit(differences: "Sequence[Difference]") -> None:
    if _count_errors(differences):
        raise click.exceptions.Exit(ExitCode.DIFFERENCES)
