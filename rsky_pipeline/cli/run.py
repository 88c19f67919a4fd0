"""`rsky-pipeline run`: start and supervise roles in the foreground."""

from typing import TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import configuration_options, loaded
from rsky_pipeline.cli.output import fail
from rsky_pipeline.configuration.topology import ROLE_NAMES, start_order

if TYPE_CHECKING:
    from rsky_pipeline.configuration.settings import Settings

ALL = "all"


@click.command()
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice([ALL, *ROLE_NAMES]),
    default=[ALL],
    show_default=True,
    help="What to run here; may be repeated.",
)
@click.option(
    "--workers",
    "workers",
    multiple=True,
    metavar="ROLE=N",
    help="Processes of a role, for instance indexer=2; may be repeated.",
)
@configuration_options
def command(roles: tuple[str, ...], workers: tuple[str, ...], **parameters: Any) -> None:
    """Start and supervise roles in the foreground.

    Without redis_url or database_url, embedded stores are started in data_dir. The first SIGTERM or
    Ctrl-C stops in order (consumers first), a second one skips the draining, a third one kills.
    """
    from rsky_pipeline.runtime import logging as log_setup
    from rsky_pipeline.runtime.errors import ConfigurationProblem, WorkerError
    from rsky_pipeline.supervisor.service import PipelinePlan, supervise

    assignments = [_workers_setting(text) for text in workers]
    parameters["assignments"] = (*parameters["assignments"], *assignments)
    configuration = loaded(parameters)
    settings = configuration.settings
    log_setup.configure(settings.log_level, settings.log_format, role="supervisor")
    for remark in configuration.remarks:
        click.echo(f"rsky-pipeline: {remark}", err=True)
    chosen = start_order(ROLE_NAMES if ALL in roles else roles)
    try:
        code = supervise(PipelinePlan(settings, chosen, prepare_database))
    except ConfigurationProblem as error:
        raise fail(str(error), ExitCode.USAGE) from error
    except WorkerError as error:
        raise fail(str(error), error.exit_code) from error
    raise click.exceptions.Exit(code)


def prepare_database(settings: "Settings") -> list[str]:
    """Bring the schema up to date; return what was done. Raises Unavailable or WorkerError."""
    from rsky_pipeline.configuration.redaction import redacted
    from rsky_pipeline.database.errors import (
        DatabaseError,
        DatabaseUnavailable,
        TransactionConflict,
    )
    from rsky_pipeline.database.schema import initialise
    from rsky_pipeline.runtime.errors import Unavailable, WorkerError

    url = settings.database_url or ""
    try:
        return initialise(url, settings.database_schema)
    except (DatabaseUnavailable, TransactionConflict) as error:
        raise Unavailable(f"PostgreSQL at {redacted(url)}: {error}") from error
    except DatabaseError as error:
        raise WorkerError(f"the schema in {redacted(url)} cannot be prepared: {error}") from error


def _workers_setting(text: str) -> str:
    """Turn `indexer=2` into an assignment to the setting, which is checked with the others."""
    role, separator, count = text.partition("=")
    if not separator or role not in ROLE_NAMES:
        roles = ", ".join(ROLE_NAMES)
        message = f"--workers {text!r}: allowed is ROLE=N with a role of {roles}"
        raise fail(message, ExitCode.USAGE)
    return f"{role}_workers={count}"
