"""`rsky-pipeline index-repo`: bring the rows of repos exactly up to date."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.command import (
    CommandError,
    Invocation,
    operator_command,
    subjects_argument,
)
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import Progress, line, say

if TYPE_CHECKING:
    from rsky_pipeline.operations.index_repo import Indexed
    from rsky_pipeline.operations.repos import RepoResult
    from rsky_pipeline.operations.subjects import NamedSubject


@operator_command(name="index-repo")
@subjects_argument()
@click.option("--file", "file", type=click.Path(dir_okay=False, path_type=Path), metavar="CSV",
              help="CSV with a column did, or a DID on each line.")  # fmt: skip
def command(run: Invocation, given: "tuple[NamedSubject, ...]", file: Path | None) -> int:
    """Fetch and verify repos, and create, update and delete their rows directly in PostgreSQL.

    Safe beside running workers, and to repeat. A repo that fails does not stop the others; then
    the exit code is 1, or 69 if the directory or the hosts could be asked for none of them.
    """
    from rsky_pipeline.operations.repos import none_reachable

    named = _read(run, file) if file is not None else ()
    wanted = list(dict.fromkeys([*run.accounts(given), *named]))
    if not wanted:
        raise click.UsageError("give accounts, or --file with at least one")
    outcomes = _index(run, wanted)
    failed = [outcome for outcome in outcomes if outcome.result is None]
    done = len(outcomes) - len(failed)
    run.answer(
        {
            "indexed": done, "failed": len(failed),
            "repos": [outcome.document(_document) for outcome in outcomes],
        },
        lambda: line(f"repos up to date: {done:,}, failed: {len(failed):,}"),
    )  # fmt: skip
    if none_reachable(outcomes):
        return ExitCode.UNAVAILABLE
    return ExitCode.FAILED if failed else ExitCode.OK


def _index(run: Invocation, wanted: list[str]) -> "list[RepoResult[Indexed]]":
    import trio

    from rsky_pipeline.indexer.collections.registry import SelectedCollections
    from rsky_pipeline.operations.index_repo import bring_up_to_date
    from rsky_pipeline.operations.repos import each_repo
    from rsky_pipeline.repos.repo import Repo

    outcomes: list[RepoResult[Indexed]] = []
    progress = Progress()

    def report(outcome: "RepoResult[Indexed]") -> None:
        outcomes.append(outcome)
        if outcome.result is None:
            say(f"{outcome.did}: {outcome.reason}: {outcome.message}")
        elif not run.as_json and len(wanted) <= SHOWN:
            line(_line(outcome.result))
        progress(f"{len(outcomes):,} of {len(wanted):,} repos")

    with run.database("index-repo") as database:
        collections = SelectedCollections(run.settings.collections, run.settings.validation)

        async def work(repo: Repo) -> "Indexed":
            return await bring_up_to_date(database, repo, collections)

        trio.run(each_repo, run.settings, wanted, work, report)
    return outcomes


SHOWN = 100  # repos of which each has a line; of more only failures and the progress


def _read(run: Invocation, file: Path) -> list[str]:
    """Return the DIDs of a CSV file."""
    from rsky_pipeline.operations.backfill.adding import RefusedNames, from_file, valid

    refused = RefusedNames()
    try:
        found = list(valid(from_file(file), refused, run.settings))
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}", ExitCode.USAGE) from error
    if refused.count:
        say(f"{file}: lines without a DID: {refused.count:,}")
    return found


def _line(done: "Indexed") -> str:
    refused = f", refused {done.refused.total():,}" if done.refused.total() else ""
    return (
        f"{done.did} at {done.rev}: records {done.records:,}, created {done.inserted:,}, "
        f"updated {done.updated:,}, deleted {done.deleted:,}{refused}"
    )


def _document(done: "Indexed") -> dict[str, Any]:
    return {
        "did": done.did, "rev": done.rev, "records": done.records, "created": done.inserted,
        "updated": done.updated, "deleted": done.deleted, "unchanged": done.unchanged,
        "refused": +done.refused,
    }  # fmt: skip
