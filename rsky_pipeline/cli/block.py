"""`rsky-pipeline block`: leave out accounts, hosts and collections."""

import getpass
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.command import (
    CommandError,
    Invocation,
    confirm,
    operator_command,
    subjects_argument,
)
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import Progress, line, print_table, say

if TYPE_CHECKING:
    from rsky_pipeline.database.selection import Block
    from rsky_pipeline.operations.blocking import BlockReport
    from rsky_pipeline.operations.subjects import NamedSubject

    Subjects = tuple[NamedSubject, ...]

MAX_REASON = 200  # characters
SHOWN = 20  # subjects of a command; of more the number
_hosts = click.option("--host", "hosts", multiple=True, metavar="HOST",
                      help="A PDS, or *.HOST for all below it; may be repeated.")  # fmt: skip


def _complete_collections(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from rsky_pipeline.indexer.collections import registry

    return [nsid for nsid in registry.load() if nsid.startswith(incomplete)]


_collections = click.option("--collection", "nsids", multiple=True, metavar="NSID",
                            shell_complete=_complete_collections,
                            help="A collection, or PREFIX.*; may be repeated.")  # fmt: skip

_file = click.option("--file", "file", metavar="CSV",
                     type=click.Path(dir_okay=False, path_type=Path),
                     help="Accounts: a CSV with a column did, or a DID on each line.")  # fmt: skip


@click.group()
def command() -> None:
    """Leave out accounts, hosts and collections, at run time.

    Exit codes: 0 done, 1 partly done (the output says why), 2 wrong option or argument, 69 Redis,
    PostgreSQL or a host cannot be reached.
    """


@operator_command(command)
@subjects_argument()
@_file
@_hosts
@_collections
@click.option("--rows", type=click.Choice(["keep", "takedown", "purge"]), default="keep",
              show_default=True, help="What to do with rows that are there: keep, hide accounts as "
              "a takedown does, or remove.")  # fmt: skip
@click.option("--reason", default="", metavar="TEXT", help="Noted with the block.")
@click.option("--yes", is_flag=True, help="Do not ask before rows are removed.")
def add(
    run: Invocation, given: "Subjects", file: Path | None, hosts: Sequence[str],
    nsids: Sequence[str], rows: str, reason: str, yes: bool,
) -> int:  # fmt: skip
    """Leave out accounts, the accounts of hosts, or collections, from now on.

    When the command ends nothing more of it is written, whatever is queued; the ingester drops it
    unread within seconds. Rows stay as they are unless --rows says otherwise. Repeat the command
    with another --rows to hide or remove them later.
    """
    from rsky_pipeline.indexer.collections import registry
    from rsky_pipeline.operations.blocking import block

    wanted = _named(run, given, file, hosts, nsids, rows, _reason(reason))
    if rows == "takedown" and nsids:
        raise click.UsageError("a collection cannot be taken down: --rows keep or purge")
    if hosts and run.settings.verify == "none":
        say("verify = none: the ingester looks nobody up, so only backfills leave hosts out")
    if rows == "purge":
        named = ", ".join(shown(each) for each in wanted[:SHOWN])
        more = f" and {len(wanted) - SHOWN:,} more" if len(wanted) > SHOWN else ""
        confirm(f"all rows of {named}{more}", yes)
    with run.database("block") as database, run.store("block") as store:
        report = block(
            database, store, run.settings, wanted, registry.load(run.settings.validation),
            Progress(),
        )  # fmt: skip

    def show() -> None:
        _list("{} is blocked already", report.unchanged)
        _list("blocked {}", report.changed)
        if rows != "keep":
            done = "hidden" if rows == "takedown" else "purged"
            count = report.hidden if rows == "takedown" else report.accounts
            line(f"accounts {done}: {count:,}")

    return _end(run, report, show)


@operator_command(command)
@subjects_argument()
@_file
@_hosts
@_collections
@click.option("--no-repair", is_flag=True, help="Fetch nothing: rows stay incomplete.")
def remove(
    run: Invocation, given: "Subjects", file: Path | None, hosts: Sequence[str],
    nsids: Sequence[str], no_repair: bool,
) -> int:  # fmt: skip
    """Lift blocks, and fetch the repos that were left out.

    The repos of the accounts are queued (of a collection, those of all accounts), and takedowns of
    the block are lifted. Exit with 1 if something was not blocked.
    """
    from rsky_pipeline.operations.blocking import lift

    wanted = _named(run, given, file, hosts, nsids)
    with run.database("block") as database, run.store("block") as store:
        report = lift(database, store, run.settings, wanted, Progress(), repair=not no_repair)

    def show() -> None:
        _list("{} is not blocked", report.unchanged)
        _list("lifted the block of {}", report.changed)
        if report.changed and not no_repair:
            line(f"repos to fetch: {report.accounts:,}; see `rsky-pipeline backfill status`")

    code = _end(run, report, show)
    return ExitCode.FAILED if report.unchanged else code


@operator_command(command, name="list")
def list_(run: Invocation) -> None:
    """Show all blocks, the oldest first."""
    from rsky_pipeline.configuration.selection import lifting
    from rsky_pipeline.database.selection import list_blocks

    with run.database("block") as database:
        found = list_blocks(database)

    def show() -> None:
        if not found:
            line("nothing is blocked")
            return
        print_table(
            ("KIND", "SUBJECT", "SINCE", "ROWS", "BY", "REASON"),
            [
                (each.kind, shown(each), _since(each), _rows(each), each.added_by, each.reason)
                for each in found
            ],
        )
        for each in found:
            if each.lifted:
                again = lifting(each.kind, each.subject)
                say(f"{shown(each)}: lifted, and not repaired: repeat {again}")

    run.answer({"blocks": [_document(each) for each in found]}, show)


def shown(block: "Block") -> str:
    """Return the subject of a block as people write it."""
    from rsky_pipeline.configuration.selection import shown_block

    return shown_block(block.kind, block.subject)


def _list(text: str, blocks: "Sequence[Block]") -> None:
    for each in blocks[:SHOWN]:
        line(text.format(shown(each)))
    if len(blocks) > SHOWN:
        line(text.format(f"{len(blocks) - SHOWN:,} more"))


def _named(
    run: Invocation, given: "Subjects", file: Path | None, hosts: Sequence[str],
    nsids: Sequence[str], rows: str = "keep", reason: str = "",
) -> "list[Block]":  # fmt: skip
    """Return a block for each name. Ends the command for an invalid one."""
    from rsky_pipeline.atproto.syntax import is_nsid
    from rsky_pipeline.cli.index_repo import read_accounts
    from rsky_pipeline.configuration.selection import read_host
    from rsky_pipeline.database.selection import Block

    accounts = [] if file is None else read_accounts(run, file)
    if not (given or accounts or hosts or nsids):
        raise click.UsageError("give accounts, --file, --host or --collection")
    user = _user()
    found: list[Block] = []
    for host in hosts:
        try:
            found.append(Block("host", read_host(host), rows, reason, user))
        except ValueError as error:
            raise CommandError(f"--host: {error}", ExitCode.USAGE) from error
    for nsid in nsids:
        name = nsid.strip()
        name = name.removesuffix("*") if name.endswith(".*") else name
        if not is_nsid(name.removesuffix(".") + ".x" if name.endswith(".") else name):
            text = f"{nsid[:100]!r} is neither an NSID nor a prefix such as com.example.*"
            raise CommandError(f"--collection: {text}", ExitCode.USAGE)
        found.append(Block("collection", name, rows, reason, user))
    accounts += run.accounts(given)
    found += [Block("account", did, rows, reason, user) for did in accounts]
    return list({(each.kind, each.subject): each for each in found}.values())


def _user() -> str:
    """Return who blocks; the number of an account without a name."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.geteuid())


def _reason(text: str) -> str:
    from rsky_pipeline.runtime.errors import printable

    reason = printable(" ".join(text.split()))
    if len(reason) > MAX_REASON:
        raise click.UsageError(f"--reason: at most {MAX_REASON} characters")
    return reason


def _end(run: Invocation, report: "BlockReport", show: Any) -> int:
    document = asdict(report) | {
        "changed": [_document(each) for each in report.changed],
        "unchanged": [_document(each) for each in report.unchanged],
    }
    run.answer(document, show)
    for problem in report.problems:
        say(problem)
    return ExitCode.FAILED if report.problems else ExitCode.OK


def _document(block: "Block") -> dict[str, Any]:
    since = None if block.since is None else block.since.isoformat()
    return asdict(block) | {"subject": shown(block), "since": since}


def _since(block: "Block") -> str:
    return "-" if block.since is None else f"{block.since:%Y-%m-%d %H:%M}"


def _rows(block: "Block") -> str:
    return f"{block.rows} ({block.accounts:,} accounts)" if block.accounts else block.rows
