"""`rsky-pipeline db recount`: recompute counts and report what had drifted."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.database import opened_database
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.output import print_json, say
from rsky_pipeline.cli.progress import Progress

if TYPE_CHECKING:
    from rsky_pipeline.operations.recount import Drift

SHOWN = 1_000  # drifts that are listed; all are counted and repaired


@click.command()
@click.option("--did", "dids", multiple=True, metavar="DID",
              help="Counts of an account and of its records; may be repeated.")  # fmt: skip
@click.option("--uri", "uris", multiple=True, metavar="URI",
              help="Counts of a post, feed or labeler; may be repeated.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="All counts.")
@click.option("--dry-run", is_flag=True, help="Report only; exit with 6 if something drifted.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@configuration_options
def recount(
    dids: tuple[str, ...], uris: tuple[str, ...], everything: bool, dry_run: bool, as_json: bool,
    **parameters: Any,
) -> None:  # fmt: skip
    """Recompute likes, replies, reposts, quotes, followers, follows and posts; repair what drifted.

    Safe beside running indexers, and at any point to interrupt and to repeat.
    """
    if everything == bool(dids or uris):
        raise click.UsageError("give --did or --uri, or --all")
    from rsky_pipeline.operations.recount import Scope
    from rsky_pipeline.operations.recount import recount as chunks

    progress, keys, drifts, count = Progress(), 0, list["Drift"](), 0
    with opened_database(parameters, "recount") as (_, database):
        for chunk in chunks(database, Scope(dids, uris), repair=not dry_run):
            keys += chunk.keys
            count += len(chunk.drifts)
            drifts += chunk.drifts[: SHOWN - len(drifts)]
            progress(f"{chunk.table}: {keys:,} looked at, {count:,} counts had drifted")
    if as_json:
        print_json({
            "checked": keys, "drifted": count, "repaired": 0 if dry_run else count,
            "drifts": [asdict(drift) for drift in drifts],
        })  # fmt: skip
    else:
        for drift in drifts:
            click.echo(f"{drift.key}  {drift.column}: {drift.stored} -> {drift.counted}")
        if count > len(drifts):
            say(f"{count - len(drifts):,} more are not listed")
        done = "would be repaired" if dry_run else "repaired"
        click.echo(f"{keys:,} rows of counts looked at, {count:,} counts {done}")
    if dry_run and count:
        raise click.exceptions.Exit(ExitCode.DIFFERENCES)
