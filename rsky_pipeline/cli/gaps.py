"""`rsky-pipeline gaps`: events of relays that were not seen, and what was done about it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.output import fail, print_json, print_table, say

if TYPE_CHECKING:
    from rsky_pipeline.ingester.listing.gap_table import GapRow

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
HEADER = ("ID", "HOST", "KIND", "FROM", "TO", "FROM TIME", "TO TIME", "STATUS", "LISTED", "QUEUED")


@click.group()
def command() -> None:
    """List events of relays that were not seen, and repair what they cost.

    Exit codes: 0 done, 1 not repaired, 2 wrong option, 69 a store cannot be reached.
    """


@command.command("list")
@_json
@configuration_options
def list_all(as_json: bool, **parameters: Any) -> None:
    """Show every gap that was noticed, the newest first."""
    from rsky_pipeline.cli import database, store
    from rsky_pipeline.operations.gaps import all_gaps
    from rsky_pipeline.streams.connection import connect

    with database.told(parameters) as settings, store.told(settings):
        connection = connect(settings.redis_url or "", name="gaps")
        found = all_gaps(connection, settings)
        connection.close()
    _print(found, as_json)


@command.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_json
@configuration_options
def repair(ids: tuple[str, ...], as_json: bool, **parameters: Any) -> None:
    """List the repos of the gap's relay, and queue those that are further than ours.

    Without an ID, every gap that is open or whose repair failed.
    """
    import trio

    from rsky_pipeline.cli import database, store
    from rsky_pipeline.operations.gaps import UnknownGap, repair_gaps
    from rsky_pipeline.streams.connection import connect

    with database.told(parameters) as settings, store.told(settings):
        connection = connect(settings.redis_url or "", name="gaps")
        say("listing the repos of each relay with an open gap; that takes as long as it has repos")
        try:
            found = trio.run(repair_gaps, connection, settings, ids)
        except UnknownGap as error:
            raise fail(str(error), ExitCode.USAGE) from error
        finally:
            connection.close()
    if not found and not as_json:
        click.echo("no gap is open: see `rsky-pipeline gaps list`; name one to repair it again")
        return
    _print(found, as_json)
    if any(gap.status != "repaired" for gap in found):
        raise click.exceptions.Exit(ExitCode.FAILED)


def _print(gaps: "Sequence[GapRow]", as_json: bool) -> None:
    if as_json:
        print_json({"gaps": [asdict(gap) for gap in gaps]})
        return
    if not gaps:
        click.echo("no gaps")
        return
    rows = [
        (gap.id, gap.host, gap.kind, gap.from_seq or "-", gap.to_seq or "-", gap.from_time or "-",
         gap.to_time or "-", gap.status, gap.repos_listed, gap.repos_queued)
        for gap in gaps
    ]  # fmt: skip
    print_table(HEADER, rows)
    for gap in gaps:
        if gap.error:
            click.echo(f"{gap.id}: {gap.error}")
