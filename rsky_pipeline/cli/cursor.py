"""`rsky-pipeline cursor`: where the ingester is in the streams of relays, labelers and bsync."""

from dataclasses import asdict
from typing import Any

import click

from rsky_pipeline.cli.command import HOST_NAME, CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import line, print_table

_force = click.option("--force", is_flag=True, help="Do it even if events are skipped.")
_stream = click.option(
    "--stream",
    type=click.Choice(["firehose_live", "label_live", "bsync_live"]),
    default="firehose_live",
    show_default=True,
    help="Whose cursor: a relay's, a labeler's, or of a log of bsync (mute, notif, operation).",
)


@click.group()
def command() -> None:
    """Look at and set cursors; a running ingester goes on from a new one at once.

    Exit codes: 0 done, 1 refused, 2 wrong option, 69 Redis cannot be reached.
    """


@operator_command(command, "list")
def list_all(run: Invocation) -> None:
    """Show stored cursors with the time of their newest event."""
    from rsky_pipeline.operations.cursors import list_cursors

    with run.store("cursor") as store:
        found = list_cursors(store, run.settings)
    rows = [
        (item.stream, item.host, "-" if item.seq is None else item.seq, item.time or "-",
         "yes" if item.configured else "no", f"invalid: {item.invalid}" if item.invalid else "")
        for item in found
    ]  # fmt: skip
    header = ("STREAM", "HOST", "CURSOR", "EVENT TIME", "CONFIGURED", "REMARK")
    run.answer({"cursors": [asdict(item) for item in found]}, lambda: print_table(header, rows))


@operator_command(command, "set")
@click.argument("host", type=HOST_NAME)
@click.argument("seq", type=click.IntRange(0, 2**53 - 1))
@click.option("--again", is_flag=True, help="Process commits again; the ingester must be stopped.")
@_stream
@_force
def set_one(run: Invocation, host: str, seq: int, again: bool, stream: Any, force: bool) -> None:
    """Continue after event SEQ of HOST; 0 is its oldest event.

    Going back reads events again; commits that were taken over before are skipped, unless --again
    makes the ingester forget the states of all repos. Going forward skips events: it takes
    --force, and the gap is recorded and repaired.
    """
    if again:
        from rsky_pipeline.operations.cursors import CursorRefusedError, forget_repos

        with run.store("cursor") as store:
            try:
                forget_repos(store)
            except CursorRefusedError as error:
                raise CommandError(str(error), ExitCode.FAILED) from error
    _change(run, host, stream, seq, force)


@operator_command(command)
@click.argument("host", type=HOST_NAME)
@_stream
@_force
def reset(run: Invocation, host: str, stream: Any, force: bool) -> None:
    """Forget the cursor of HOST.

    The ingester starts at initial_cursor, as on a new host. A log of bsync is read from its
    beginning, as that of a new database: its operations count more than all before.
    """
    _change(run, host, stream, None, force)


def _change(run: Invocation, host: str, stream: Any, seq: int | None, force: bool) -> None:
    from rsky_pipeline.configuration.endpoints import parse_endpoint
    from rsky_pipeline.operations.cursors import CursorRefusedError, is_configured, set_cursor

    try:
        name = parse_endpoint(host).key
    except ValueError as error:
        raise CommandError(f"{host!r} is not a host: {error}", ExitCode.USAGE) from error
    with run.store("cursor") as store:
        configured = is_configured(run.settings, stream, name)
        try:
            before = set_cursor(store, stream, name, seq, force=force, configured=configured)
        except CursorRefusedError as error:
            raise CommandError(str(error), ExitCode.FAILED) from error
    was = "none" if before.seq is None else before.seq
    run.answer(
        {"host": name, "stream": stream, "before": before.seq, "now": seq},
        lambda: line(f"{name}: cursor {was} -> {'none' if seq is None else seq}"),
    )
