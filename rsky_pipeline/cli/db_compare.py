"""`rsky-pipeline db compare`: a repo against its rows."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.database import opened_database
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from rsky_pipeline.operations.compare_repo import Comparison
    from rsky_pipeline.operations.repos import Outcome

COLUMNS = ("repo", "rows", "equal", "newer", "refused", "missing", "extra", "different", "unlisted")


@click.command()
@click.option("--did", "dids", multiple=True, required=True, metavar="DID",
              help="The account; may be repeated.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@configuration_options
def compare(dids: tuple[str, ...], as_json: bool, **parameters: Any) -> None:
    """Fetch and verify a repo, and tell what is missing, additional or different in the database.

    Only reads. Exit with 6 if something differs, with 1 if a repo cannot be fetched.
    """
    import trio

    from rsky_pipeline.backfiller.unpack import Repo
    from rsky_pipeline.indexer.collections import registry
    from rsky_pipeline.operations.compare_repo import compare_repo
    from rsky_pipeline.operations.repos import each_repo

    outcomes: list[Outcome[Comparison]] = []
    with opened_database(parameters, "compare") as (settings, database):
        collections = registry.load(settings.validation)

        def work(repo: Repo) -> "Comparison":
            return compare_repo(database, repo, collections, settings.collections)

        trio.run(each_repo, settings, dids, work, outcomes.append)
    if as_json:
        print_json({"repos": [_document(outcome) for outcome in outcomes]})
    else:
        for outcome in outcomes:
            _show(outcome)
    if any(outcome.result is None for outcome in outcomes):
        raise click.exceptions.Exit(ExitCode.FAILED)
    if any(outcome.result and outcome.result.differences for outcome in outcomes):
        raise click.exceptions.Exit(ExitCode.DIFFERENCES)


def _document(outcome: "Outcome[Comparison]") -> dict[str, Any]:
    if outcome.result is None:
        return {"did": outcome.did, "error": outcome.reason, "message": outcome.message}
    return asdict(outcome.result) | {"differences": outcome.result.differences}


def _show(outcome: "Outcome[Comparison]") -> None:
    found = outcome.result
    if found is None:
        say(f"{outcome.did}: {outcome.reason}: {outcome.message}")
        return
    click.echo(f"{found.did} at {found.rev}: differences: {found.differences}")
    rows = [
        (nsid, *(getattr(of, name) for name in COLUMNS)) for nsid, of in found.collections.items()
    ]
    print_table(("COLLECTION", *(name.upper() for name in COLUMNS)), rows)
    for nsid, of in found.collections.items():
        for kind, uris in of.examples.items():
            for uri in uris:
                click.echo(f"  {kind}: {uri}")
            if (more := getattr(of, kind) - len(uris)) > 0:
                click.echo(f"  {kind}: {more:,} more of {nsid}")
    for drift in found.counts:
        click.echo(f"  count: {drift.key} {drift.column} is {drift.stored}, rows: {drift.counted}")
    if found.differences:
        say(f"`rsky-pipeline index-repo {found.did}` brings the rows up to date")
