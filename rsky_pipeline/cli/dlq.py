"""`rsky-pipeline dlq`: look at dead letters, try them again, or give them up."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.output import fail, print_json, print_table, say
from rsky_pipeline.cli.progress import Progress
from rsky_pipeline.cli.store import opened_store

if TYPE_CHECKING:
    from rsky_pipeline.operations.dead_letters import ReasonCount, Retried

Command = TypeVar("Command", bound=Callable[..., Any])

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_reason = click.option("--reason", metavar="REASON", help="Only letters with this reason.")
_ids = click.option("--id", "ids", multiple=True, metavar="ID", help="Only this letter; may be "
                    "repeated.")  # fmt: skip


@click.group()
def command() -> None:
    """List, show, retry and drop what could not be processed.

    STREAM is a dead-letter stream (firehose_live_dlq) or the stream it belongs to (firehose_live);
    without one, all are meant. Exit codes: 0 done, 1 some letters stay (what is printed says
    why), 2 wrong option, 69 Redis cannot be reached.
    """


@command.command("list")
@click.argument("stream", required=False)
@_reason
@_json
@configuration_options
def list_letters(stream: str | None, reason: str | None, as_json: bool, **parameters: Any) -> None:
    """Count dead letters by stream and reason."""
    from rsky_pipeline.operations.dead_letters import tally
    from rsky_pipeline.operations.losses import moment

    streams = _streams(stream)
    with opened_store(parameters, "dlq") as (_, store):
        found = [item for name in streams for item in tally(store, name, reason)]
    if as_json:
        total = sum(item.count for item in found)
        print_json({"total": total, "letters": [item.document() for item in found]})
    elif not found:
        click.echo("no dead letters")
    else:
        print_table(
            ("STREAM", "REASON", "COUNT", "OLDEST", "NEWEST"),
            [
                (each.stream, each.reason, f"{each.count:,}", moment(each.oldest),
                 moment(each.newest))
                for each in found
            ],
        )  # fmt: skip


@command.command()
@click.argument("stream")
@_reason
@_ids
@click.option("--count", type=click.IntRange(1, 1_000), default=10, show_default=True,
              help="Letters to show, oldest first.")  # fmt: skip
@_json
@configuration_options
def show(
    stream: str, reason: str | None, ids: tuple[str, ...], count: int, as_json: bool,
    **parameters: Any,
) -> None:  # fmt: skip
    """Show dead letters of a stream; long texts are cut, raw frames are summarised."""
    from itertools import islice

    from rsky_pipeline.operations.dead_letters import describe, select

    (name,) = _streams(stream)
    with opened_store(parameters, "dlq") as (_, store):
        found = [describe(name, each) for each in islice(select(store, name, reason, ids), count)]
    if as_json:
        print_json({"stream": name, "letters": found})
        return
    for item in found:
        click.echo(f"{item['id']} ({item['time']}) {item['reason']}, attempts {item['attempts']}")
        click.echo(f"  error: {item['error'] or '-'}")
        for key, value in item["entry"].items():
            click.echo(f"  {key}: {value}")
    if not found:
        click.echo("no such dead letters")


@command.command()
@click.argument("stream", required=False)
@_reason
@_ids
@click.option("--all", "everything", is_flag=True, help="All streams and reasons.")
@_json
@configuration_options
def retry(
    stream: str | None, reason: str | None, ids: tuple[str, ...], everything: bool, as_json: bool,
    **parameters: Any,
) -> None:  # fmt: skip
    """Put dead letters back into the stream they came from.

    Raw frames are converted again; where signatures are checked (verify), the repo that a commit
    belongs to is queued to be fetched in its place. What still cannot be used stays, with exit
    code 1.
    """
    from rsky_pipeline.operations import dead_letters

    _require_choice(stream, reason, everything)
    results: dict[str, Retried] = {}
    progress = Progress()
    with opened_store(parameters, "dlq") as (settings, store):
        for name in _streams(stream):
            letters = dead_letters.select(store, name, reason, ids)
            results[name] = dead_letters.retry(store, name, letters, settings, progress)
    kept = sum(each.kept_count for each in results.values())
    if as_json:
        print_json(_retried_document(results))
    else:
        click.echo(f"retried {sum(each.retried for each in results.values()):,}, kept {kept:,}")
        for name, each in results.items():
            for letter_id, why in each.kept:
                say(f"{name} {letter_id} stays: {why}")
    if kept:
        raise click.exceptions.Exit(ExitCode.FAILED)


@command.command()
@click.argument("stream", required=False)
@_reason
@_ids
@click.option("--all", "everything", is_flag=True, help="All streams and reasons.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_json
@configuration_options
def drop(
    stream: str | None, reason: str | None, ids: tuple[str, ...], everything: bool, yes: bool,
    as_json: bool, **parameters: Any,
) -> None:  # fmt: skip
    """Remove dead letters for good, after saying what is lost and asking."""
    from rsky_pipeline.operations import dead_letters

    _require_choice(stream, reason, everything)
    streams = _streams(stream)
    with opened_store(parameters, "dlq") as (_, store):
        # What comes while the question waits for its answer was not asked about.
        last = {name: dead_letters.last_id(store, name) for name in streams}
        if ids:
            lost = f"{len(ids)} letters of {', '.join(streams)}"
        else:
            found = [
                item
                for name in streams
                for item in dead_letters.tally(store, name, reason, last[name])
            ]
            lost = "; ".join(_sentence(item) for item in found) or "nothing"
        if lost != "nothing":
            _confirm(lost, yes)
        progress = Progress()
        removed = {
            name: dead_letters.drop(
                store, name, dead_letters.select(store, name, reason, ids, last[name]), progress
            )
            for name in streams
        }
    if as_json:
        print_json({"dropped": {name: count for name, count in removed.items() if count}})
    else:
        click.echo(f"dropped {sum(removed.values()):,}")


def _streams(name: str | None) -> tuple[str, ...]:
    from rsky_pipeline.operations.dead_letters import LETTER_STREAMS, letter_stream

    if name is None:
        return LETTER_STREAMS
    try:
        return (letter_stream(name),)
    except ValueError as error:
        raise fail(str(error), ExitCode.USAGE) from error


def _require_choice(stream: str | None, reason: str | None, everything: bool) -> None:
    if stream is None and reason is None and not everything:
        raise fail("give a STREAM, a --reason, or --all", ExitCode.USAGE)


def _sentence(item: "ReasonCount") -> str:
    from rsky_pipeline.operations.losses import moment

    return (
        f"{item.count:,} of {item.stream} ({item.reason}, {moment(item.oldest)} to "
        f"{moment(item.newest)})"
    )


def _confirm(lost: str, yes: bool) -> None:
    say(f"this loses for good: {lost}")
    if yes:
        return
    if not sys.stdin.isatty():
        raise fail("nobody to ask: --yes drops them", ExitCode.USAGE)
    if not click.confirm("Drop them?", err=True):
        raise click.exceptions.Exit(ExitCode.FAILED)


def _retried_document(results: "dict[str, Retried]") -> dict[str, Any]:
    return {
        "streams": {
            name: {
                "retried": each.retried,
                "gone": each.gone,
                "kept": each.kept_count,
                "examples": [{"id": letter, "why": why} for letter, why in each.kept],
            }
            for name, each in results.items()
            if each.retried or each.gone or each.kept_count
        }
    }
