"""`rsky-pipeline gaps`: events of relays that were not seen, and their repair."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import line, print_table, say

if TYPE_CHECKING:
    from rsky_pipeline.ingester.listing.gap_repair import GapRow

HEADER = ("ID", "HOST", "KIND", "FROM", "TO", "FROM TIME", "TO TIME", "STATUS", "LISTED", "QUEUED")


@click.group()
def command() -> None:
    """List events of relays that were not seen, and repair the loss.

    Exit codes: 0 done, 1 not repaired, 2 wrong option, 69 a store cannot be reached.
    """


@operator_command(command, "list")
def list_all(run: Invocation) -> None:
    """Show every gap that was noticed, the newest first."""
    from rsky_pipeline.operations.gaps import all_gaps

    with run.store("gaps") as store:
        found = all_gaps(store, run.settings)
    run.answer(_document(found), lambda: _show(found))


@operator_command(command)
@click.argument("ids", metavar="[ID]...", nargs=-1)
def repair(run: Invocation, ids: tuple[str, ...]) -> int:
    """Repair gaps.

    Lists the repos of the gap's relay, and queues those whose rev is newer than ours. Without an
    ID, every gap that is open or whose repair failed.
    """
    import trio

    from rsky_pipeline.operations.gaps import UnknownGapError, repair_gaps

    with run.store("gaps") as store:
        say("listing the repos of each relay with an open gap; this takes a while on a large relay")
        try:
            found = trio.run(repair_gaps, store, run.settings, ids)
        except UnknownGapError as error:
            raise CommandError(str(error), ExitCode.USAGE) from error
    if found:
        run.answer(_document(found), lambda: _show(found))
    else:
        hint = "no gap is open: see `rsky-pipeline gaps list`; name one to repair it again"
        run.answer(_document(found), lambda: line(hint))
    repaired = all(gap.status == "repaired" for gap in found)
    return ExitCode.OK if repaired else ExitCode.FAILED


def _document(gaps: "Sequence[GapRow]") -> dict[str, object]:
    return {"gaps": [asdict(gap) for gap in gaps]}


def _show(gaps: "Sequence[GapRow]") -> None:
    if not gaps:
        line("no gaps")
        return
    rows = [
        (gap.id, gap.host, gap.kind, gap.from_seq or "-", gap.to_seq or "-", gap.from_time or "-",
         gap.to_time or "-", gap.status, gap.repos_listed, gap.repos_queued)
        for gap in gaps
    ]  # fmt: skip
    print_table(HEADER, rows)
    for gap in gaps:
        if gap.error:
            line(f"{gap.id}: {gap.error}")
