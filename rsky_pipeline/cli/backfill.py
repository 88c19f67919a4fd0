"""`rsky-pipeline backfill`: bring in accounts, see how far it is, try again, cancel."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.command import (
    DURATION,
    CommandError,
    Invocation,
    old_option,
    operator_command,
    subjects_argument,
)
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import Progress, duration, line, print_table, say

if TYPE_CHECKING:
    from rsky_pipeline.configuration.settings import Settings
    from rsky_pipeline.database.connection import Database
    from rsky_pipeline.operations.backfill.adding import Adder, RefusedNames
    from rsky_pipeline.operations.subjects import NamedSubject
    from rsky_pipeline.streams.connection import Store

    Subjects = tuple[NamedSubject, ...]

_priority = click.option(
    "--priority", type=click.Choice(["high", "normal", "low"]), default="normal",
    show_default=True, help="Which stream: high goes before the repos that relays list.",
)  # fmt: skip
_no_wait = click.option(
    "--no-wait", is_flag=True, help="End with exit code 1 at the high-water mark; do not wait."
)


@click.group()
def command() -> None:
    """Bring in the history of accounts, show progress, retry, cancel.

    Exit codes: 0 done, 1 partly done (the output says why), 2 wrong option or argument, 69
    Redis, PostgreSQL or a host cannot be reached.
    """


@operator_command(command)
@click.argument("names", nargs=-1, metavar="[ACCOUNT]...")
@click.option("--file", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="CSV with a column did, or a DID on each line.")  # fmt: skip
@click.option("--pds", metavar="HOST", help="All active accounts of a PDS, by its listRepos.")
@click.option("--collection", metavar="NSID",
              help="All accounts with records of it, by the first relay's "
              "listReposByCollection.")  # fmt: skip
@_priority
@click.option("--force", is_flag=True, help="Fetch repos even if the stored rev is current.")
@click.option("--restart", is_flag=True, help="Read a listing from its beginning again.")
@_no_wait
def add(
    run: Invocation, names: tuple[str, ...], file: Path | None, pds: str | None,
    collection: str | None, priority: str, force: bool, restart: bool, no_wait: bool,
) -> int:  # fmt: skip
    """Queue accounts, each once. Waits while the stream is at its high-water mark.

    Repos already stored at their current rev are skipped unless you pass --force.
    A listing that was interrupted continues where it was when the command is repeated.
    """
    from rsky_pipeline.configuration.selection import Selection
    from rsky_pipeline.operations.backfill.adding import (
        PRIORITIES,
        Adder,
        ListingMovedError,
        QueueFullError,
        RefusedNames,
        from_file,
        valid,
    )
    from rsky_pipeline.streams.selection import read_selection

    given = [bool(names), file is not None, pds is not None, collection is not None]
    if sum(given) != 1:
        raise CommandError("give accounts, --file, --pds or --collection", ExitCode.USAGE)
    refused, problem = RefusedNames(), None
    with run.store("backfill") as store:
        selection = read_selection(store, run.settings.indexer_group, Selection())
        if pds is not None and not selection.keeps(host=_host(pds)):
            text = f"{pds} is blocked: see `rsky-pipeline block list`"
            raise CommandError(text, ExitCode.FAILED)
        adder = Adder(
            store, PRIORITIES[priority], run.settings.repo_high_water_mark, wait=not no_wait,
            force=force, count_stored=partial(_count_stored, run), tell=Progress(),
            selection=selection,
        )  # fmt: skip
        try:
            if pds is not None or collection is not None:
                _add_listed(adder, store, run.settings, priority, pds, collection, restart)
            else:
                found = names if file is None else from_file(file)
                adder.add(valid(found, refused, run.settings))
        except (QueueFullError, ListingMovedError) as error:
            problem = str(error) or "another command continues the same listing"
    return _report_added(run, adder, refused, problem, priority)


@operator_command(command)
@click.option("--window", type=DURATION, default="5m", show_default=True, metavar="DURATION",
              help="Rates and the time left follow from the work done in it.")  # fmt: skip
def status(run: Invocation, window: float) -> None:
    """Show repos by state and reason, rates and the time left."""
    from rsky_pipeline.database.errors import DatabaseError
    from rsky_pipeline.operations.backfill.progress import document, look, stored

    with run.store("backfill") as store:
        queues = look(store, run.settings)
    known, problem = None, None
    try:
        with _database(run) as database:
            known = stored(database, window)
    except DatabaseError as error:
        problem = f"PostgreSQL cannot be asked, so that only queues are shown: {error}"
    found = document(queues, known, _workers(run), window)
    run.answer(found, lambda: _show_status(found))
    if problem is not None:
        raise CommandError(problem, ExitCode.UNAVAILABLE)


@operator_command(command)
@click.option("--reason", metavar="REASON", help="Only repos that failed for this reason.")
@subjects_argument()
@old_option("--did", "old")
@_priority
@_no_wait
def retry(
    run: Invocation, given: "Subjects", reason: str | None, old: "Subjects", priority: str,
    no_wait: bool,
) -> None:  # fmt: skip
    """Retry dead letters, and repos that are stored as failed; of all accounts, or of some.

    Accounts that are deactivated or gone, or were cancelled, are tried again only by --reason or
    by name.
    """
    from rsky_pipeline.database.errors import DatabaseError
    from rsky_pipeline.operations.backfill.adding import PRIORITIES, Adder, QueueFullError
    from rsky_pipeline.operations.backfill.progress import unsuccessful
    from rsky_pipeline.operations.backfill.queued import retry as retry_repos

    progress, dids = Progress(), run.accounts(given, old)
    with run.store("backfill") as store:
        try:
            with _database(run) as database:
                given_up = unsuccessful(database, reason, dids)
        except DatabaseError as error:
            raise CommandError(f"PostgreSQL: {error}", ExitCode.UNAVAILABLE) from error
        adder = Adder(store, PRIORITIES[priority], run.settings.repo_high_water_mark,
                      wait=not no_wait, tell=progress)  # fmt: skip
        try:
            done = retry_repos(
                store, run.settings, adder, given_up, reason=reason, dids=dids, tell=progress
            )
        except QueueFullError as error:
            raise CommandError(f"{error}; repeat the command to go on", ExitCode.FAILED) from error
    run.answer(
        asdict(done) | {"total": done.total},
        lambda: line(f"trying {done.total:,} repos again ({done.letters:,} dead letters, "
                     f"{done.waiting:,} that waited, {done.given_up:,} given up)"),
    )  # fmt: skip


@operator_command(command)
@subjects_argument()
@click.option("--all", "everything", is_flag=True, help="All accounts.")
@click.option("--resyncs", is_flag=True,
              help="Also repairs that live indexing asked for; rows may stay wrong.")  # fmt: skip
def cancel(run: Invocation, given: "Subjects", everything: bool, resyncs: bool) -> None:
    """Take jobs out of the queue. Workers finish the jobs that they hold already."""
    from rsky_pipeline.database.errors import DatabaseError
    from rsky_pipeline.operations.backfill.progress import mark_cancelled
    from rsky_pipeline.operations.backfill.queued import cancel as cancel_jobs

    if bool(given) == everything:
        raise CommandError("give accounts or --all", ExitCode.USAGE)
    dids = run.accounts(given)
    with run.store("backfill") as store:
        done = cancel_jobs(store, None if everything else set(dids), resyncs=resyncs,
                           tell=Progress())  # fmt: skip
    problem = None
    try:
        with _database(run) as database:
            mark_cancelled(database, done.dids)
    except DatabaseError as error:
        problem = f"cancelled, but not noted in PostgreSQL: {error}"
    counts = {"running": done.running, "resyncs": done.resyncs}
    run.answer(
        {"cancelled": len(done.dids), **counts}, lambda: line(f"cancelled {len(done.dids):,}")
    )
    if done.running:
        say(f"{done.running:,} are held by a worker and end there")
    if done.resyncs:
        say(f"{done.resyncs:,} repairs of live indexing stay; --resyncs cancels them too")
    if problem:
        raise CommandError(problem, ExitCode.UNAVAILABLE)


def _add_listed(
    adder: "Adder", store: "Store", settings: "Settings", priority: str, pds: str | None,
    collection: str | None, restart: bool,
) -> None:  # fmt: skip
    from rsky_pipeline.configuration.endpoints import parse_endpoint
    from rsky_pipeline.network.http import HttpError
    from rsky_pipeline.operations.backfill.adding import PRIORITIES, add_listed, cursor_key

    try:
        endpoint = settings.relays[0] if pds is None else parse_endpoint(pds)
    except ValueError as error:
        raise CommandError(f"--pds {pds}: {error}", ExitCode.USAGE) from error
    key = cursor_key(PRIORITIES[priority], endpoint, collection)
    if restart:
        store.call("DEL", key)
    elif store.call("GET", key):
        say(f"going on where the last listing of {endpoint.key} was interrupted")
    ranges = adder.added.unlistable
    try:
        add_listed(adder, store, settings, endpoint, key, collection,
                   lambda found: ranges.append(str(found.range)))  # fmt: skip
    except HttpError as error:
        text = f"{error}; {adder.added.queued:,} are queued, repeat the command to go on"
        raise CommandError(text, ExitCode.UNAVAILABLE) from error


def _report_added(
    run: Invocation, adder: "Adder", refused: "RefusedNames", problem: str | None, priority: str
) -> int:
    added = adder.added
    notes = [
        f"{count:,} {meaning}"
        for count, meaning in (
            (added.duplicates, "named twice"), (added.already_queued, "queued already"),
            (added.inactive, "inactive"), (refused.count, "no DID"),
            (added.stored, "stored already"), (added.blocked, "blocked"),
        )
        if count
    ]  # fmt: skip
    run.answer(
        {
            **asdict(added), "invalid": refused.count, "invalid_examples": refused.examples,
            "priority": priority, "complete": problem is None, "problem": problem,
        },
        lambda: line(f"queued {added.queued:,}" + (f" ({', '.join(notes)})" if notes else "")),
    )  # fmt: skip
    if added.stored:
        say("repos that are stored already are fetched only if their PDS has a newer rev; --force "
            "fetches them anyway")  # fmt: skip
    if added.blocked:
        say("blocked accounts are not queued; see `rsky-pipeline block list`")
    for cursors in added.unlistable:
        say(f"the host could not list the accounts with cursors {cursors}; with --restart they are "
            "asked for again")  # fmt: skip
    for example in refused.examples:
        say(f"no account is named by {example!r}")
    if problem:
        raise CommandError(f"{problem}; repeat the command to go on", ExitCode.FAILED)
    if added.unlistable:
        return ExitCode.FAILED
    if refused.count:
        return ExitCode.FAILED if added.queued else ExitCode.USAGE
    return ExitCode.OK


def _count_stored(run: Invocation, dids: Sequence[str]) -> int:
    """Count the accounts whose repo is stored; 0 where PostgreSQL cannot be asked."""
    from rsky_pipeline.database.errors import DatabaseError
    from rsky_pipeline.operations.erasure import erased_revs
    from rsky_pipeline.repos.stored import stored_revs

    try:
        with _database(run) as database:
            for did, rev in erased_revs(database, dids).items():
                say(f"{did}: erased up to {rev}; it comes back with a newer repo only")
            return sum(revs.complete is not None for revs in stored_revs(database, dids))
    except DatabaseError:  # only Redis is needed to queue
        return 0


def _host(pds: str) -> str:
    """Return a host as blocks name it; empty for a name that is none."""
    from rsky_pipeline.configuration.selection import read_host

    try:
        return read_host(pds)
    except ValueError:
        return ""


def _database(run: Invocation) -> AbstractContextManager["Database"]:
    return run.database("backfill-command", statement_timeout_ms=60_000)


def _workers(run: Invocation) -> list[dict[str, Any]]:
    """Return the state of running backfillers; none if no pipeline runs here."""
    from rsky_pipeline.runtime.errors import WorkerError
    from rsky_pipeline.supervisor import client

    try:
        found = client.find(run.run_directory)
    except WorkerError:
        return []
    return [
        {key: process.get(key) for key in ("name", "state", "rate", "trouble")}
        for supervisor in found
        for process in supervisor.status["processes"]
        if process.get("role") == "backfiller"
    ]


def _time_left(found: dict[str, Any]) -> str:
    if found["listing"]["ended"] is not False:
        return f"time left {duration(found['eta_seconds'])}"
    return (
        f"time left unknown: relays are still listing repos ({found['listing']['repos']:,} so "
        f"far); {duration(found['queue_seconds'])} for those that are queued"
    )


def _show_status(found: dict[str, Any]) -> None:
    rows = [(name, f"{count:,}") for name, count in found["queued"].items()]
    rows += [("held by workers", f"{found['running']:,}"),
             ("waiting for another attempt", f"{found['waiting']:,}"),
             ("dead letters", f"{found['dead_letters']:,}")]  # fmt: skip
    repos = found["repos"]
    if repos is not None:
        for name in ("done", "unavailable", "failed", "cancelled"):
            rows.append((name, f"{repos[name]:,}"))
    print_table(("REPOS", "COUNT"), rows)
    reasons = [
        (status, reason, f"{count:,}")
        for status, counts in (repos["by_reason"] if repos else {}).items()
        if status != "done"
        for reason, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    if reasons:
        line()
        print_table(("STATUS", "REASON", "COUNT"), reasons)
    line()
    if repos is not None:
        line(f"{found['repos_per_second']:,} repos/s, {found['records_per_second']:,} "
             f"records/s, {_time_left(found)}")  # fmt: skip
    line(f"{found['records_not_indexed']:,} records wait for the indexer")
    for worker in found["workers"]:
        line(f"{worker['name']}: {worker['state']}, {worker['rate'] or 0:,.1f} repos/s")
