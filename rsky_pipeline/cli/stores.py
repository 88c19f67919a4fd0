"""`rsky-pipeline stores`: a shell on Redis; from the embedded stores to stores of one's own."""

import click

from rsky_pipeline.cli.command import CommandError, Invocation, confirm, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import line, say


@click.group()
def command() -> None:
    """Look into Redis; move from the embedded stores to your own."""


@operator_command(command, json=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def shell(run: Invocation, arguments: tuple[str, ...]) -> int:
    """Open valkey-cli or redis-cli on the Redis of the pipeline.

    Address, database, user, password and TLS are those of redis_url; behind sentinels it is the
    present primary. The password is passed by the environment. Arguments behind -- are those of the
    client. Exit with 69 if it is not installed, or Redis cannot be reached.
    """
    from rsky_pipeline.operations.shell import redis_cli

    with run.store("shell") as store:
        store.ping()
        call = redis_cli(run.settings, store, arguments)
    for remark in call.remarks:
        say(remark)
    call.execute()


@operator_command(command, "import")
@click.option("--replace", is_flag=True,
              help="Remove what the new stores have of the pipeline, for example of a copy that "
              "was interrupted.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask.")
def import_(run: Invocation, replace: bool, yes: bool) -> int:
    """Copy the embedded stores in data_dir into those that redis_url and database_url name.

    Stop the pipeline with `rsky-pipeline stop --drain`, set the URLs, import, start. Works from
    newer to older versions, and from Valkey to Redis. The embedded stores stay as they are. A store
    without a URL is left out. Exit codes: 0 copied, 1 refused, 69 a store cannot be reached.
    """
    from rsky_pipeline.embedded.locations import resolve_directories
    from rsky_pipeline.operations.importing import import_stores
    from rsky_pipeline.supervisor import client
    from rsky_pipeline.supervisor.errors import NotRunningError

    settings = resolve_directories(run.loaded.settings)
    if settings.redis_url is None and settings.database_url is None:
        raise CommandError("set redis_url and database_url to the new stores", ExitCode.USAGE)
    try:
        client.find(run.run_directory)
    except NotRunningError:
        pass
    else:
        raise CommandError(
            "the pipeline runs: `rsky-pipeline stop --drain` first", ExitCode.ALREADY_RUNNING
        )
    if replace:
        confirm("all rows of the pipeline's schemas, and keys of the same names, over there", yes)
    outcome = import_stores(settings, replace_all=replace, tell=run.tell)

    def show() -> None:
        rows = sum(outcome.rows.values())
        line(f"{rows:,} rows of {len(outcome.rows)} tables, {sum(outcome.keys.values()):,} keys")
        line("then: `rsky-pipeline config check --connect`, `rsky-pipeline start`")

    run.answer({"rows": outcome.rows, "keys": outcome.keys}, show)
    return ExitCode.OK
