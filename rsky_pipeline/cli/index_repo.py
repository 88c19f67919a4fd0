"""`rsky-pipeline index-repo`: bring the rows of repos exactly up to date, or rebuild them."""

from collections.abc import Iterator, Sequence
from itertools import islice
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
    from rsky_pipeline.operations.rebuild import Rebuild, Report
    from rsky_pipeline.operations.repos import RepoResult
    from rsky_pipeline.operations.subjects import NamedSubject
    from rsky_pipeline.repos.repo import Repo

SHOWN = 100  # repos of which each has a line; of more only failures and the progress
CHUNK_REPOS = 50  # that are fetched before the position of a rebuild is stored


@operator_command(name="index-repo")
@subjects_argument()
@click.option("--file", "file", type=click.Path(dir_okay=False, path_type=Path), metavar="CSV",
              help="CSV with a column did, or a DID on each line.")  # fmt: skip
@click.option("--rebuild", is_flag=True,
              help="Write rows again that are not what the records say.")  # fmt: skip
@click.option("--all", "everybody", is_flag=True, help="With --rebuild: all accounts.")
@click.option("--collection", "nsids", multiple=True, metavar="NSID",
              help="With --rebuild: only rows of this collection; may be repeated.")  # fmt: skip
@click.option("--source", type=click.Choice(["stored", "pds"]), default=None,
              help="With --rebuild: the records in the database (default), or the repos of their "
              "hosts, which also restores records.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(min=0), metavar="N",
              help="With --rebuild: records a second. Default: 2000; 0: no limit.")  # fmt: skip
def command(
    run: Invocation, given: "tuple[NamedSubject, ...]", file: Path | None, rebuild: bool,
    everybody: bool, nsids: tuple[str, ...], source: str | None, rate: float | None,
) -> int:  # fmt: skip
    """Fetch and verify repos, and create, update and delete their rows directly in PostgreSQL.

    Safe beside running workers, and to repeat. A repo that fails does not stop the others; then
    the exit code is 1, or 69 if the directory or the hosts could be asked for none of them.

    With --rebuild every row that the records make is compared with the stored one, and written
    where it differs, for example after a defect of the indexer. Nobody is notified twice. Stop it
    at any moment and repeat it: it goes on where it was. Exit with 6 if differences are left, with
    1 if records are damaged or accounts failed.
    """
    from rsky_pipeline.operations.repos import none_reachable

    if everybody and (given or file is not None):
        raise click.UsageError("give accounts or --all, not both")
    named = read_accounts(run, file) if file is not None else ()
    wanted = list(dict.fromkeys([*run.accounts(given), *named]))
    if not wanted and not everybody:
        raise click.UsageError("give accounts, or --file with at least one")
    if rebuild:
        return _rebuild(
            run, None if everybody else sorted(wanted), nsids, source or "stored",
            2_000.0 if rate is None else rate,
        )  # fmt: skip
    for name, value in (("--all", everybody), ("--collection", nsids), ("--source", source),
                        ("--rate", rate is not None)):  # fmt: skip
        if value:
            raise click.UsageError(f"{name} is for --rebuild")
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


def _rebuild(
    run: Invocation, dids: list[str] | None, nsids: tuple[str, ...], source: str, rate: float
) -> int:
    found = rebuild_repos(run, dids, nsids, source, rate)
    run.answer(found.document(), lambda: show_rebuilt(found, source))
    if found.failed or found.damaged:
        return ExitCode.FAILED
    return ExitCode.DIFFERENCES if found.left else ExitCode.OK


def rebuild_repos(
    run: Invocation, dids: list[str] | None, nsids: tuple[str, ...], source: str, rate: float,
    *, notify: bool = True,
) -> "Report":  # fmt: skip
    """Rebuild accounts, all for None; print the progress and return the report."""
    from rsky_pipeline.indexer.collections.registry import SelectedCollections
    from rsky_pipeline.operations.rebuild import Rebuild, scope_of

    everything = SelectedCollections(run.settings.collections, run.settings.validation)
    unknown = [nsid for nsid in nsids if nsid not in everything]
    if unknown:
        raise click.UsageError(f"{unknown[0]} is not indexed; known are {', '.join(everything)}")
    wanted = {nsid: everything[nsid] for nsid in sorted(nsids)} if nsids else everything
    progress = Progress()

    def report(found: "Report") -> None:
        progress(
            f"{found.accounts:,} accounts, {found.records:,} records compared, "
            f"{found.written:,} rows written, failed accounts: {found.failed:,}"
        )

    with run.database("rebuild") as database:
        scope = scope_of(dids, nsids, source)
        work = Rebuild(database, scope, wanted, everything, rate, notify=notify)
        if work.resumed:
            say(f"going on after {work.after}; accounts done before: {work.report.accounts:,}")
        if work.outdated:
            say("another version of the program began it: beginning anew")
        rest = work.accounts() if dids is None else (did for did in dids if did > work.after)
        if source == "pds":
            _rebuild_fetched(run, work, rest, report)
        else:
            work.run(rest, report)
    return work.report


def show_rebuilt(found: "Report", source: str) -> None:
    """Print the report of a rebuild."""
    for table, count in sorted(found.rows.items()):
        line(f"{table}: {count:,}")
    for text in found.examples:
        say(text)
    line(
        f"accounts: {found.accounts:,}, records compared: {found.records:,}, rows written: "
        f"{found.written:,}, left: {found.left:,}, damaged records: {found.damaged:,}, "
        f"failed accounts: {found.failed:,}"
    )
    if found.damaged and source == "stored":
        pds = "`rsky-pipeline index-repo --rebuild --source pds ACCOUNT`"
        say(f"damaged records are restored by {pds}, or with --all in place of ACCOUNT")


def _rebuild_fetched(run: Invocation, work: "Rebuild", dids: Iterator[str], report: Any) -> None:
    """Fetch repos, some at a time; bring records and rows to what each says."""
    import trio

    from rsky_pipeline.database.selection import load_selection
    from rsky_pipeline.indexer.collections.registry import SelectedCollections
    from rsky_pipeline.operations.index_repo import bring_up_to_date
    from rsky_pipeline.operations.rebuild import restore_records
    from rsky_pipeline.operations.repos import each_repo
    from rsky_pipeline.repos.repo import list_paths
    from rsky_pipeline.runtime.threads import in_thread

    limiter = trio.CapacityLimiter(1)
    selection = load_selection(work.database)
    collections = SelectedCollections(
        run.settings.collections, run.settings.validation, selection.collections
    )

    async def rebuild(repo: "Repo") -> bool:
        await bring_up_to_date(work.database, repo, collections)
        paths = await in_thread(list_paths, repo, limiter=limiter)
        await in_thread(restore_records, work.database, paths, collections, limiter=limiter)
        await in_thread(work.rebuild, repo.commit.did, limiter=limiter)
        return True

    def note(outcome: "RepoResult[bool]") -> None:
        if outcome.result is None:
            work.fail(outcome.did, f"{outcome.reason}: {outcome.message}")
        report(work.report)

    while chunk := list(islice(dids, CHUNK_REPOS)):
        trio.run(each_repo, run.settings, chunk, rebuild, note, selection)
        work.after = chunk[-1]
        work.save()
    work.end()


def _index(run: Invocation, wanted: Sequence[str]) -> "list[RepoResult[Indexed]]":
    import trio

    from rsky_pipeline.database.selection import load_selection
    from rsky_pipeline.indexer.collections.registry import SelectedCollections
    from rsky_pipeline.operations.erasure import erased_revs
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
        selection = load_selection(database)
        collections = SelectedCollections(
            run.settings.collections, run.settings.validation, selection.collections
        )

        async def work(repo: Repo) -> "Indexed":
            return await bring_up_to_date(database, repo, collections)

        trio.run(each_repo, run.settings, wanted, work, report, selection)
        done = {each.did: each.result.rev for each in outcomes if each.result is not None}
        for did, rev in erased_revs(database, list(done)).items():
            say(f"{did}: erased up to {rev}; its repo at {done[did]} brings nothing back")
    return outcomes


def read_accounts(run: Invocation, file: Path) -> list[str]:
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
