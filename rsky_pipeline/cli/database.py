"""The configured PostgreSQL for commands, and how its failures are told."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import loaded
from rsky_pipeline.cli.output import fail
from rsky_pipeline.configuration.redaction import redacted

if TYPE_CHECKING:
    from rsky_pipeline.configuration.settings import Settings
    from rsky_pipeline.database.connection import Database
    from rsky_pipeline.database.errors import DatabaseError


@contextmanager
def told(parameters: dict[str, Any]) -> Iterator["Settings"]:
    """Yield the settings with URLs and directories; a failure is one line and an exit code."""
    from rsky_pipeline.database.errors import DatabaseError
    from rsky_pipeline.embedded.locations import resolve_directories, store_urls

    given = loaded(parameters).settings
    settings = store_urls(resolve_directories(given))
    try:
        yield settings
    except DatabaseError as error:
        raise _explained(error, settings, embedded=given.database_url is None) from error


@contextmanager
def opened_database(
    parameters: dict[str, Any], name: str
) -> Iterator[tuple["Settings", "Database"]]:
    """Yield the settings and a connection, without a limit on how long a statement takes."""
    from rsky_pipeline.database.connection import Database

    with (
        told(parameters) as settings,
        Database.connect(
            settings.database_url or "",
            schema=settings.database_schema,
            name=name,
            statement_timeout_ms=0,
        ) as database,
    ):
        yield settings, database


def _explained(
    error: "DatabaseError", settings: "Settings", *, embedded: bool
) -> "click.exceptions.Exit":
    from rsky_pipeline.database.errors import DatabaseUnavailable, TransactionConflict

    text = " ".join(str(error).split())
    where = f"PostgreSQL at {redacted(settings.database_url or '')}"
    if isinstance(error, TransactionConflict):
        hint = "something holds a lock for long: stop the pipeline's workers and try again"
        return fail(f"{where}: {text}; {hint}", ExitCode.UNAVAILABLE)
    if not isinstance(error, DatabaseUnavailable):
        return fail(f"{where}: {text}", ExitCode.FAILED)
    if embedded:
        return fail(
            f"the embedded PostgreSQL in {settings.data_dir} does not run: start it with "
            "`rsky-pipeline run`, or set database_url to another server",
            ExitCode.UNAVAILABLE,
        )
    return fail(f"{where} cannot be used: {text}", ExitCode.UNAVAILABLE)
