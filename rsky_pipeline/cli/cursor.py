"""`rsky-pipeline cursor`: where the ingester is in the streams of relays and labelers."""

from dataclasses import asdict
from typing import Any

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.output import fail, print_json, print_table
from rsky_pipeline.cli.store import opened_store

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_force = click.option("--force", is_flag=True, help="Do it even if events are skipped.")
_stream = click.option(
    "--stream",
    type=click.Choice(["firehose_live", "label_live"]),
    default="firehose_live",
    show_default=True,
    help="Whose cursor: a relay's or a labeler's.",
)


@click.group()
def command() -> None:
    """Look at and set cursors; a running ingester goes on from a new one at once.

    Exit codes: 0 done, 1 refused, 2 wrong option, 69 Redis cannot be reached.
    """


@command.command("list")
@_json
@configuration_options
def list_all(as_json: bool, **parameters: Any) -> None:
    """Show every stored cursor, and the time of the newest event that it covers."""
    from rsky_pipeline.operations.cursors import list_cursors

    with opened_store(parameters, "cursor") as (settings, store):
        found = list_cursors(store, settings)
    if as_json:
        print_json({"cursors": [asdict(item) for item in found]})
        return
    rows = [
        (item.stream, item.host, "-" if item.seq is None else item.seq, item.time or "-",
         "yes" if item.configured else "no", f"invalid: {item.invalid}" if item.invalid else "")
        for item in found
    ]  # fmt: skip
    print_table(("STREAM", "HOST", "CURSOR", "EVENT TIME", "CONFIGURED", "REMARK"), rows)


@command.command("set")
@click.argument("host")
@click.argument("seq", type=click.IntRange(0, 2**53 - 1))
@click.option("--again", is_flag=True, help="Take commits over again; the ingester is stopped.")
@_stream
@_force
@_json
@configuration_options
def set_one(
    host: str, seq: int, again: bool, stream: Any, force: bool, as_json: bool, **parameters: Any
) -> None:
    """Go on behind event SEQ of HOST; 0 is its oldest event.

    Going back reads events again; commits that were taken over before are skipped, unless --again
    has the states of all repos forgotten. Going forward skips events: it takes --force, and the
    gap is noted and repaired.
    """
    if again:
        from rsky_pipeline.operations.cursors import Refused, forget_repos

        with opened_store(parameters.copy(), "cursor") as (_, store):
            try:
                forget_repos(store)
            except Refused as error:
                raise fail(str(error), ExitCode.FAILED) from error
    _change(parameters, host, stream, seq, force, as_json)


@command.command()
@click.argument("host")
@_stream
@_force
@_json
@configuration_options
def reset(host: str, stream: Any, force: bool, as_json: bool, **parameters: Any) -> None:
    """Forget the cursor of HOST: the ingester starts at initial_cursor, as on a new host."""
    _change(parameters, host, stream, None, force, as_json)


def _change(
    parameters: dict[str, Any], host: str, stream: Any, seq: int | None, force: bool, as_json: bool
) -> None:
    from rsky_pipeline.configuration.endpoints import parse_endpoint
    from rsky_pipeline.operations.cursors import Refused, is_configured, set_cursor

    try:
        name = parse_endpoint(host).key
    except ValueError as error:
        raise fail(f"{host!r} is not a host: {error}", ExitCode.USAGE) from error
    with opened_store(parameters, "cursor") as (settings, store):
        configured = is_configured(settings, stream, name)
        try:
            before = set_cursor(store, stream, name, seq, force=force, configured=configured)
        except Refused as error:
            raise fail(str(error), ExitCode.FAILED) from error
    if as_json:
        print_json({"host": name, "stream": stream, "before": before.seq, "now": seq})
        return
    was = "none" if before.seq is None else before.seq
    click.echo(f"{name}: cursor {was} -> {'none' if seq is None else seq}")
