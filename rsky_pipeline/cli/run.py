"""`rsky-pipeline run`: start and supervise roles in the foreground."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import say
from rsky_pipeline.configuration.topology import ROLE_NAMES, start_order

if TYPE_CHECKING:
    from rsky_pipeline.configuration.settings import Settings
    from rsky_pipeline.runtime.server_setting import ServerSetting

ALL = "all"

log = logging.getLogger(__name__)


@operator_command(name="run", json=False)
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice([ALL, *ROLE_NAMES]),
    default=[ALL],
    show_default=True,
    help="Role to run here; may be repeated.",
)
@click.option("--workers", "workers", multiple=True, metavar="ROLE=N",
              help="Processes of a role, for instance indexer=2; may be repeated.")  # fmt: skip
def command(run: Invocation, roles: tuple[str, ...], workers: tuple[str, ...]) -> int:
    """Start and supervise roles in the foreground.

    Without redis_url or database_url, embedded stores are started in data_dir. The first SIGTERM or
    Ctrl-C stops in order (consumers first), a second one skips the draining, a third one kills.
    """
    from rsky_pipeline.runtime import logging as log_setup
    from rsky_pipeline.runtime.errors import SettingError
    from rsky_pipeline.supervisor.prepare import prepare_apart
    from rsky_pipeline.supervisor.service import PipelinePlan, supervise

    run.assign(*(_workers_setting(text) for text in workers))
    configuration = run.loaded
    settings = configuration.settings
    log_setup.configure(settings.log_level, settings.log_format, role="supervisor")
    for remark in configuration.remarks:
        say(remark)
    chosen = start_order(ROLE_NAMES if ALL in roles else roles)
    try:
        plan = PipelinePlan(settings, chosen, prepare_apart, read_again=run.read_again)
        return supervise(plan)
    except SettingError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error


def prepare_stores(
    settings: "Settings", with_database: bool, tell: Callable[[str], None] = lambda _: None
) -> list[str] | None:
    """Check the settings of the stores; bring the schema up to date, and return its changes.

    `tell` is called with what the operator should see at once: workers will wait for Redis.
    Raises UnavailableError while PostgreSQL is unreachable, PermissionDeniedError where a store
    refuses the login, SettingError for a store that cannot be used, and WorkerError.
    """
    from rsky_pipeline.streams import server

    if problem := _check_settings(settings.redis_url or "", server.check):
        tell(f"waiting for Redis: {problem}")
    return _prepare_database(settings) if with_database else None


def _prepare_database(settings: "Settings") -> list[str]:
    from rsky_pipeline.configuration.redaction import redacted
    from rsky_pipeline.database import server
    from rsky_pipeline.database.errors import (
        NO_PRIVILEGE,
        DatabaseError,
        DatabaseUnavailableError,
        LoginRefusedError,
        SchemaMismatchError,
        TransactionConflictError,
    )
    from rsky_pipeline.database.schema import check, initialise, pending
    from rsky_pipeline.runtime.errors import (
        PermissionDeniedError,
        SettingError,
        UnavailableError,
        WorkerError,
    )

    url = settings.database_url or ""
    try:
        _check_settings(url, server.check)
        if not pending(url, settings.database_schema):
            return []  # who uses the database looks at the pair
        _require_pair(settings)
        for each in check(url, settings.database_schema, bsync=settings.bsync_url is not None):
            if each.subject.startswith("trigger "):  # seen before anything is written
                details = {"trigger": each.subject, "advice": each.advice}
                log.warning("a trigger of others fires for rows", extra=details)
        return initialise(url, settings.database_schema)
    except LoginRefusedError as error:
        raise PermissionDeniedError(f"PostgreSQL at {redacted(url)}: {error}") from error
    except (DatabaseUnavailableError, TransactionConflictError) as error:
        raise UnavailableError(f"PostgreSQL at {redacted(url)}: {error}") from error
    except DatabaseError as error:
        text = f"the schema in {redacted(url)} cannot be prepared: {error}"
        # Neither a missing privilege nor a schema of another origin cures itself.
        if error.sqlstate == NO_PRIVILEGE:
            raise PermissionDeniedError(text) from error
        if isinstance(error, SchemaMismatchError):
            raise SettingError(text) from error
        raise WorkerError(text) from error


def _require_pair(settings: "Settings") -> None:
    """Look at the pair before anything is changed in a database, which may be a wrong one.

    Raises SettingError if it is, UnavailableError while Redis does not answer.
    """
    from contextlib import closing

    from rsky_pipeline.configuration.redaction import redacted
    from rsky_pipeline.database.connection import Database
    from rsky_pipeline.health.pairing import require_pair
    from rsky_pipeline.runtime.errors import UnavailableError
    from rsky_pipeline.streams.connection import connect
    from rsky_pipeline.streams.errors import StoreRejectedError, StoreUnavailableError

    url = settings.redis_url or ""
    opened = Database.connect(
        settings.database_url or "", schema=settings.database_schema, name="start"
    )
    with closing(connect(url, name="start")) as store, opened as database:
        try:
            require_pair(store, database, settings.indexer_group)
        except (StoreUnavailableError, StoreRejectedError) as error:
            text = "does not show whether it belongs to this database, whose schema is to change"
            raise UnavailableError(f"Redis at {redacted(url)} {text}: {error}") from error


def _check_settings(url: str, check: "Callable[[str], list[ServerSetting]]") -> str | None:
    """Log what breaks a promise; raises SettingError for a server that cannot be used at all.

    Returns why one does not answer: that is left to the workers, which wait for it. Raises
    PermissionDeniedError for a Redis that refuses the login.
    """
    from rsky_pipeline.configuration.redaction import redacted
    from rsky_pipeline.database.errors import LoginRefusedError
    from rsky_pipeline.runtime.errors import PermissionDeniedError, SettingError, StoreError
    from rsky_pipeline.streams.errors import LoginRejectedError

    try:
        found = check(url)
    except LoginRefusedError:
        raise
    except LoginRejectedError as error:
        raise PermissionDeniedError(f"{redacted(url)}: {error}") from error
    except StoreError as error:
        log.warning("settings of a store not checked", extra={"url": redacted(url), "error": error})
        return f"{redacted(url)}: {error}"
    for item in found:
        if item.severity == "unusable":
            raise SettingError(f"{redacted(url)} cannot be used: {item}")
        if item.severity == "error":
            details = {"url": redacted(url), "setting": item.name, "detail": item}
            log.error("unsuitable setting of a store", extra=details)
    return None


def _workers_setting(text: str) -> str:
    """Turn `indexer=2` into an assignment to the setting, which is checked with the others."""
    role, separator, count = text.partition("=")
    if not separator or role not in ROLE_NAMES:
        roles = ", ".join(ROLE_NAMES)
        message = f"--workers {text!r}: allowed is ROLE=N with a role of {roles}"
        raise CommandError(message, ExitCode.USAGE)
    return f"{role}_workers={count}"
