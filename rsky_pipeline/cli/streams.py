"""`rsky-pipeline streams`: look at the Redis streams, and clean them without losing work."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rsky_pipeline.cli.durations import DURATION
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.output import fail, print_json, print_table, say
from rsky_pipeline.cli.store import opened_store

if TYPE_CHECKING:
    from rsky_pipeline.operations.cleaning import Cut
    from rsky_pipeline.operations.inspection import Inspection

Command = TypeVar("Command", bound=Callable[..., Any])
PROGRESS_SECONDS = 2.0

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_force = click.option(
    "--force", is_flag=True, help="Remove also what consumers have not read or acknowledged."
)
_dry_run = click.option("--dry-run", is_flag=True, help="Only say what would be done.")


@click.group()
def command() -> None:
    """Look at the Redis streams, and clean them without losing work.

    Exit codes: 0 done, 1 refused or partly done (see what is printed), 2 wrong option, 69 Redis
    cannot be reached.
    """


@command.command("list")
@click.option("--window", type=DURATION, default="2s", show_default=True, metavar="DURATION",
              help="How long rates are measured.")  # fmt: skip
@_json
@configuration_options
def list_streams(window: float, as_json: bool, **parameters: Any) -> None:
    """Show length, memory, rates, lag and age of every stream, and what it can hold."""
    from rsky_pipeline.cli.stream_tables import show_measurement
    from rsky_pipeline.operations.stream_figures import document, measure

    with opened_store(parameters, "streams") as (settings, store):
        measurement = measure(store, settings, seconds=window)
        if as_json:
            print_json(document(measurement))
        else:
            show_measurement(measurement)


@command.command()
@click.argument("stream")
@click.option("--count", type=click.IntRange(1, 100_000), default=1_000, show_default=True,
              help="Entries to look at.")  # fmt: skip
@click.option("--oldest", is_flag=True, help="Look at the oldest entries, not the newest.")
@_json
@configuration_options
def inspect(stream: str, count: int, oldest: bool, as_json: bool, **parameters: Any) -> None:
    """Look at a sample of a stream: types, collections, sizes."""
    from rsky_pipeline.cli.stream_tables import show_inspection
    from rsky_pipeline.operations.inspection import sample_stream

    with opened_store(parameters, "streams") as (_, store):
        found: Inspection = sample_stream(store, stream, count, from_oldest=oldest)
    if as_json:
        print_json(found.document())
    else:
        show_inspection(found)


@command.command()
@click.argument("stream")
@click.option("--keep", type=DURATION, metavar="DURATION", help="Remove what is older, as 1h.")
@click.option("--maxlen", type=click.IntRange(min=0), help="Remove all but the newest so many.")
@_force
@_dry_run
@_json
@configuration_options
def trim(
    stream: str, keep: float | None, maxlen: int | None, force: bool, dry_run: bool,
    as_json: bool, **parameters: Any,
) -> None:  # fmt: skip
    """Remove the oldest entries of a stream.

    What a group has not read or not acknowledged stays, with exit code 1, unless --force is given;
    then it says exactly what is lost.
    """
    from rsky_pipeline.operations import cleaning

    if (keep is None) == (maxlen is None):
        raise fail("give one of --keep and --maxlen", ExitCode.USAGE)
    cut = _cleaned(
        parameters,
        lambda store: cleaning.trim(
            store, stream, keep_seconds=keep, maxlen=maxlen, force=force, dry_run=dry_run,
            on_progress=_Progress(),
        ),
    )  # fmt: skip
    _finish(cut, dry_run, as_json)


@command.command()
@click.argument("stream")
@_force
@_dry_run
@_json
@configuration_options
def reset(stream: str, force: bool, dry_run: bool, as_json: bool, **parameters: Any) -> None:
    """Remove all entries of a stream; groups, their positions and cursors stay.

    Refuses, with exit code 1, while a group has not read or acknowledged everything, unless --force
    is given; then it says exactly what is lost.
    """
    from rsky_pipeline.operations import cleaning

    cut = _cleaned(
        parameters,
        lambda store: cleaning.reset(
            store, stream, force=force, dry_run=dry_run, on_progress=_Progress()
        ),
    )
    _finish(cut, dry_run, as_json)


@command.command()
@click.argument("stream")
@click.option(
    "--type",
    "kinds",
    multiple=True,
    required=True,
    metavar="TYPE",
    help="Type of the entries to remove, as `streams inspect` shows it; may be repeated.",
)
@click.option("--after", metavar="ID", help="Go on behind this entry, after an interruption.")
@click.option("--force", is_flag=True, help="Also a type that belongs into the stream.")
@_dry_run
@_json
@configuration_options
def purge(
    stream: str, kinds: tuple[str, ...], after: str | None, force: bool, dry_run: bool,
    as_json: bool, **parameters: Any,
) -> None:  # fmt: skip
    """Remove polluting entries of a type, and keep all others in their order.

    Works beside running producers and consumers. Only `repo` entries of firehose_live are
    pollution; any other type is work, and needs --force.
    """
    from rsky_pipeline.operations import cleaning

    cut = _cleaned(
        parameters,
        lambda store: cleaning.purge(
            store, stream, kinds, after=after, force=force, dry_run=dry_run,
            on_progress=_Progress(),
        ),
    )  # fmt: skip
    # The entries of this type were to go whether read or not.
    _finish(cut, dry_run, as_json)


@command.group()
def groups() -> None:
    """Look after consumer groups."""


@groups.command("repair")
@click.option("--idle", type=DURATION, default="1h", show_default=True, metavar="DURATION",
              help="A consumer that did nothing for so long is dead.")  # fmt: skip
@_dry_run
@_json
@configuration_options
def repair_groups(idle: float, dry_run: bool, as_json: bool, **parameters: Any) -> None:
    """Put groups right: missing ones, positions past the end, pending entries without a body,
    consumers that are gone.

    Exit with 1 if something is left that only a running worker can put right.
    """
    from rsky_pipeline.configuration.expectations import expected_groups
    from rsky_pipeline.operations.groups import repair

    with opened_store(parameters, "streams") as (settings, store):
        found = repair(store, expected_groups(settings), idle_seconds=idle, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, "found": [item.document() for item in found]})
    else:
        rows = [
            (item.stream, item.group, item.what, f"{item.count:,}", _done(item.done, dry_run),
             item.detail)
            for item in found
        ]  # fmt: skip
        header = ("STREAM", "GROUP", "FOUND", "COUNT", "STATE", "DETAIL")
        print_table(header, rows) if rows else click.echo("the groups are good")
    if any(not item.done for item in found) and not dry_run:
        raise click.exceptions.Exit(ExitCode.FAILED)


@command.command("hand-back")
@_dry_run
@_json
@configuration_options
def hand_back_streams(dry_run: bool, as_json: bool, **parameters: Any) -> None:
    """Leave the streams so that the original (Rust) services can go on from them.

    After `stop --ordered`: moves urgent, unhurried and waiting repos into repo_backfill, and what
    is pending with our consumers to the end of its stream. May be repeated.
    """
    from rsky_pipeline.operations.hand_back import hand_back

    with opened_store(parameters, "streams") as (settings, store):
        moved = hand_back(store, settings, dry_run=dry_run, on_step=say)
    if as_json:
        print_json({"dry_run": dry_run, "moved": [item.document() for item in moved]})
        return
    rows = [(item.source, item.target, item.why, f"{item.count:,}") for item in moved]
    if rows:
        print_table(("FROM", "TO THE END OF", "WHY", "ENTRIES"), rows)
    else:
        click.echo("nothing is to be moved")


class _Progress:
    """Says how far it is, every few seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PROGRESS_SECONDS

    def __call__(self, looked_at: int, removed: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            say(f"{looked_at:,} entries looked at, {removed:,} removed")


def _done(done: bool, dry_run: bool) -> str:
    if dry_run:
        return "found"
    return "repaired" if done else "left"


def _cleaned(parameters: dict[str, Any], action: "Callable[[Any], Cut]") -> "Cut":
    from rsky_pipeline.operations.cleaning import Refused

    with opened_store(parameters, "streams") as (_, store):
        try:
            return action(store)
        except Refused as error:
            message = f"refused: {error}; --force does it all the same, --dry-run shows what"
            raise fail(message, ExitCode.FAILED) from error


def _finish(cut: "Cut", dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({"dry_run": dry_run, **cut.document()})
    else:
        verb = "would be removed" if dry_run else "removed"
        click.echo(
            f"{cut.stream}: {cut.removed:,} of {cut.looked_at:,} entries {verb}"
            + (f", the last one looked at is {cut.last_id}" if cut.last_id else "")
        )
        if cut.lost.entries:
            click.echo(f"of these {verb} without being finished: {cut.lost.sentence()}")
    if cut.kept.entries:
        say(f"kept, because consumers need them: {cut.kept.sentence()}; --force removes them")
        if not dry_run:
            raise click.exceptions.Exit(ExitCode.FAILED)
