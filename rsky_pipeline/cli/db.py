"""`rsky-pipeline db`: create and check the database schema."""

from typing import Any

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import configuration_options, loaded
from rsky_pipeline.cli.output import fail, print_json
from rsky_pipeline.configuration.settings import Settings


@click.group()
def command() -> None:
    """Create or check the database schema."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@configuration_options
def init(as_json: bool, **parameters: Any) -> None:
    """Create what is missing; safe to repeat, and on an official AppView's database."""
    from rsky_pipeline.database.errors import DatabaseError
    from rsky_pipeline.database.schema import initialise

    settings = _settings(parameters)
    try:
        done = initialise(settings.database_url or "", settings.database_schema)
    except DatabaseError as error:
        raise _explained(error, settings) from error
    if as_json:
        print_json({"done": done})
        return
    for line in done or ["everything is there already"]:
        click.echo(line)


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@configuration_options
def check(as_json: bool, **parameters: Any) -> None:
    """Compare the schema with the expected one; exit with 6 if the pipeline misses something."""
    from rsky_pipeline.database.errors import DatabaseError
    from rsky_pipeline.database.schema import check as compare

    settings = _settings(parameters)
    try:
        differences = compare(settings.database_url or "", settings.database_schema)
    except DatabaseError as error:
        raise _explained(error, settings) from error
    missing = [item for item in differences if item.severity == "error"]
    if as_json:
        print_json(
            {
                "ok": not missing,
                "differences": [
                    {
                        "subject": item.subject,
                        "expected": item.expected,
                        "found": item.found,
                        "advice": item.advice,
                    }
                    for item in differences
                ],
            }
        )
    else:
        for item in differences:
            click.echo(f"{item.subject}: expected {item.expected}, found {item.found}")
            click.echo(f"  {item.advice}")
        click.echo(f"{len(missing)} differences that matter, {len(differences)} in all")
    if missing:
        raise click.exceptions.Exit(ExitCode.DIFFERENCES)


def _settings(parameters: dict[str, Any]) -> Settings:
    from rsky_pipeline.embedded.locations import resolve_directories, store_urls

    return store_urls(resolve_directories(loaded(parameters).settings))


def _explained(error: Exception, settings: Settings) -> "click.exceptions.Exit":
    from rsky_pipeline.configuration.redaction import redacted
    from rsky_pipeline.database.errors import DatabaseUnavailable

    where = redacted(settings.database_url or "")
    text = str(error).splitlines()[0]
    if isinstance(error, DatabaseUnavailable):
        hint = "start it, or set database_url (for the embedded one: rsky-pipeline run)"
        return fail(
            f"PostgreSQL at {where} cannot be reached: {text}; {hint}", ExitCode.UNAVAILABLE
        )
    return fail(f"PostgreSQL at {where}: {text}", ExitCode.FAILED)
