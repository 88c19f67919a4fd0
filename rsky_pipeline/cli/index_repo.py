"""`rsky-pipeline index-repo`: bring the rows of repos exactly up to date."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.database import opened_database
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.output import fail, print_json, say
from rsky_pipeline.cli.progress import Progress

if TYPE_CHECKING:
    from rsky_pipeline.operations.index_repo import Indexed
    from rsky_pipeline.operations.repos import Outcome


@click.command()
@click.argument("dids", nargs=-1, metavar="[DID]...")
@click.option("--file", "file", type=click.Path(dir_okay=False, path_type=Path), metavar="CSV",
              help="DIDs in the first column, a line each; other lines are skipped.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@configuration_options
def command(dids: tuple[str, ...], file: Path | None, as_json: bool, **parameters: Any) -> None:
    """Fetch and verify repos, and create, update and delete their rows directly in PostgreSQL.

    Safe beside running workers, and to repeat. A repo that fails does not stop the others; then
    the exit code is 1.
    """
    from rsky_pipeline.atproto.syntax import is_did

    if wrong := next((did for did in dids if not is_did(did)), None):
        raise click.UsageError(f"{wrong[:100]} is not a DID")
    wanted = list(dict.fromkeys([*dids, *(_read(file) if file is not None else ())]))
    if not wanted:
        raise click.UsageError("give DIDs, or --file with at least one")
    outcomes = _run(wanted, as_json, parameters)
    failed = [outcome for outcome in outcomes if outcome.result is None]
    if as_json:
        print_json({
            "indexed": len(outcomes) - len(failed), "failed": len(failed),
            "repos": [_document(outcome) for outcome in outcomes],
        })  # fmt: skip
    else:
        click.echo(f"repos up to date: {len(outcomes) - len(failed):,}, failed: {len(failed):,}")
    if failed:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _run(wanted: list[str], quiet: bool, parameters: dict[str, Any]) -> "list[Outcome[Indexed]]":
    import trio

    from rsky_pipeline.backfiller.unpack import Repo
    from rsky_pipeline.indexer.collections import registry
    from rsky_pipeline.operations.index_repo import bring_up_to_date
    from rsky_pipeline.operations.repos import each_repo

    outcomes: list[Outcome[Indexed]] = []
    progress = Progress()

    def report(outcome: "Outcome[Indexed]") -> None:
        outcomes.append(outcome)
        if outcome.result is None:
            say(f"{outcome.did}: {outcome.reason}: {outcome.message}")
        elif not quiet and len(wanted) <= SHOWN:
            click.echo(_line(outcome.result))
        progress(f"{len(outcomes):,} of {len(wanted):,} repos")

    with opened_database(parameters, "index-repo") as (settings, database):
        collections = registry.load(settings.validation)

        def work(repo: Repo) -> "Indexed":
            return bring_up_to_date(database, repo, collections, settings.collections)

        trio.run(each_repo, settings, wanted, work, report)
    return outcomes


SHOWN = 100  # repos of which each has a line; of more only failures and the progress


def _read(file: Path) -> list[str]:
    """Return the DIDs of a CSV file."""
    from rsky_pipeline.atproto.syntax import is_did

    found: list[str] = []
    skipped = 0
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as lines:
            for line in lines:
                did = line.partition(",")[0].strip().strip('"')
                if is_did(did):
                    found.append(did)
                elif did and did.lower() != "did":
                    skipped += 1
    except OSError as error:
        raise fail(f"{file} cannot be read: {error.strerror}", ExitCode.USAGE) from error
    if skipped:
        say(f"{file}: lines without a DID: {skipped:,}")
    return found


def _line(done: "Indexed") -> str:
    refused = f", refused {done.refused.total():,}" if done.refused.total() else ""
    return (
        f"{done.did} at {done.rev}: records {done.records:,}, created {done.inserted:,}, "
        f"updated {done.updated:,}, deleted {done.deleted:,}{refused}"
    )


def _document(outcome: "Outcome[Indexed]") -> dict[str, Any]:
    done = outcome.result
    if done is None:
        return {"did": outcome.did, "error": outcome.reason, "message": outcome.message}
    return {
        "did": done.did, "rev": done.rev, "records": done.records, "created": done.inserted,
        "updated": done.updated, "deleted": done.deleted, "unchanged": done.unchanged,
        "refused": +done.refused,
    }  # fmt: skip
