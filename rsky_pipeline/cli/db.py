"""`rsky-pipeline db`: the schema, counts, completeness of repos, and rejected records."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.command import (
    CommandError,
    Invocation,
    confirm,
    old_option,
    operator_command,
    subjects_argument,
)
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import Progress, duration, line, print_table, say
from rsky_pipeline.configuration.advice import complete
from rsky_pipeline.configuration.selection import shown_block, shown_host

if TYPE_CHECKING:
    from rsky_pipeline.database.schema import Difference
    from rsky_pipeline.operations.adoption import Adoption
    from rsky_pipeline.operations.compare_repo import Comparison
    from rsky_pipeline.operations.recount import Drift
    from rsky_pipeline.operations.repos import RepoResult
    from rsky_pipeline.operations.subjects import NamedSubject

    Subjects = tuple[NamedSubject, ...]

COMPARED = (
    "repo", "rows", "equal", "newer", "refused", "missing", "extra", "different", "unlisted",
)  # fmt: skip
SHOWN_COUNTS = 20  # wrong counts of one comparison that are listed
SHOWN_DRIFTS = 1_000  # drifts that are listed; all are counted and repaired


@click.group()
def command() -> None:
    """Create and check the schema; check and repair its contents."""


@operator_command(command)
@click.option("--admin-url", metavar="URL", help="The server's administrator, for example "
              "postgresql://postgres:PASSWORD@HOST/postgres. Default: postgres by the socket on "
              "this machine, which root may be.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the statements; execute none.")
def create(run: Invocation, admin_url: str | None, dry_run: bool) -> int:
    """Create the role and the database that database_url names, on a server of your own.

    What exists already stays. The role gets the password of database_url, if there is one, and the
    database belongs to it. Then it logs in as the pipeline will; exit with 1 and the remedy where
    that is refused. Next is `db init`.
    """
    from rsky_pipeline.database import creating

    url = run.loaded.settings.database_url
    if url is None:
        raise CommandError("database_url is not set: the embedded one is created", ExitCode.USAGE)
    try:
        target = creating.NewDatabase.of(url)
        admin = admin_url or creating.administrators_url(url)
    except ValueError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error
    statements = creating.create(target, admin, dry_run=dry_run)
    problems = [] if dry_run else creating.login_problem(target, admin)
    for problem in problems:
        say(problem)
    document = {"ok": not problems, "statements": statements, "problems": problems}
    run.answer(document, lambda: _show_lines("", statements, ""))
    return ExitCode.FAILED if problems else ExitCode.OK


@operator_command(command, json=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def shell(run: Invocation, arguments: tuple[str, ...]) -> int:
    """Open psql on the database of the pipeline.

    Host, database, user, password and TLS are those of database_url, and the search_path has the
    tables of the AppView and of the pipeline. Secrets are passed by the environment. Arguments
    behind -- are those of psql. Exit with 69 if it is not installed, or PostgreSQL cannot be
    reached.
    """
    from rsky_pipeline.operations.shell import psql

    with run.database("shell") as database:
        call = psql(run.settings, database, arguments)
    for remark in call.remarks:
        say(remark)
    call.execute()


@operator_command(command)
@click.option("--dry-run", is_flag=True, help="List the changes; make none.")
@click.option(
    "--appview", metavar="VERSION", help="The official release that the tables are to be of."
)
def init(run: Invocation, dry_run: bool, appview: str | None) -> int:
    """Create missing tables, columns and indexes.

    Safe to repeat, and on an official AppView's database. A new database is made for the oldest
    release of the official AppView that can use it, 0.0.275. With --appview the tables are those of
    that release, recorded as its own migrations. An AppView that migrates at its start upgrades the
    tables of an earlier release and refuses those of a later one; another fails at some questions.
    Exit with 6 if the database still differs afterwards from the schema that the pipeline needs.
    """
    from rsky_pipeline.database import schema

    if appview is not None and appview not in schema.RELEASES:
        known = f"known are {schema.RELEASES[0]} to {schema.RELEASES[-1]}"
        raise click.BadParameter(
            f"{appview!r} is no known release: {known}", param_hint="--appview"
        )
    target = (run.settings.database_url or "", run.settings.database_schema)
    bsync = run.settings.bsync_url is not None
    if dry_run:
        would = schema.pending(*target, appview=appview)
        run.answer(
            {"pending": would}, lambda: _show_lines("would ", would, "nothing is to be done")
        )
        return ExitCode.OK
    done = schema.initialise(*target, appview=appview)
    differences = schema.check(*target, bsync=bsync)

    def show() -> None:
        _show_lines("", done, "everything is there already")
        if _count_errors(differences):
            _show_differences(differences)

    run.answer({"done": done, "differences": [asdict(item) for item in differences]}, show)
    return ExitCode.DIFFERENCES if _count_errors(differences) else ExitCode.OK


@operator_command(command)
def check(run: Invocation) -> int:
    """Compare the schema with the expected one.

    Reads only. Exit with 6 if the pipeline misses something. The pipeline works in spite of a
    warning; a note names an addition of somebody else that does no harm. Server settings that make
    a large database slow are listed as advice.
    """
    from rsky_pipeline.database import schema
    from rsky_pipeline.database.server import advise

    url = run.settings.database_url or ""
    bsync = run.settings.bsync_url is not None
    differences = schema.check(url, run.settings.database_schema, bsync=bsync)
    release = schema.appview_release(url, run.settings.database_schema)
    # An embedded server has a `max_wal_size` that fits its disk.
    advice = advise(url) if run.loaded.settings.database_url else []
    ok = not _count_errors(differences)

    def show() -> None:
        _show_differences(differences)
        if release:
            names = schema.name_releases(release)
            line(
                f"the AppView's tables are those of {names}; later ones: db init --appview VERSION"
            )
        for item in advice:
            line(f"advice: set {item.name} to {item.wanted} (it is {item.found}): {item.why}")

    document = {
        "ok": ok,
        "differences": [asdict(item) for item in differences],
        "appview": release,
        "advice": [asdict(item) for item in advice],
    }
    run.answer(document, show)
    return ExitCode.OK if ok else ExitCode.DIFFERENCES


@operator_command(command)
@click.option("--dry-run", is_flag=True, help="Print the report; change nothing.")
@click.option("--apply", "apply_", is_flag=True, help="Add what is ours, and take over cursors.")
@click.option("--margin", default=None, type=click.IntRange(min=0), metavar="EVENTS",
              help="Events before the other indexer's cursors to begin at. Default: 5000000, some "
              "two hours of the whole network.")  # fmt: skip
@click.option("--repair", is_flag=True, help="With --apply: repair wrong rows afterwards.")
@click.option("--rate", type=click.FloatRange(min=0), metavar="N",
              help="With --repair: records a second. Default: 2000; 0: no limit.")  # fmt: skip
@click.option("--pushing", is_flag=True,
              help="With --repair: also while a trigger pushes notifications.")  # fmt: skip
def adopt(
    run: Invocation, dry_run: bool, apply_: bool, margin: int | None, repair: bool,
    rate: float | None, pushing: bool,
) -> int:  # fmt: skip
    """Take over a database that an official AppView or another indexer has filled.

    Says what it is, what differs, which rows are known to be wrong and how many, and each step with
    an estimate. --apply makes what is ours (as `db init`) and sets cursors where there are none;
    nothing of others is changed or removed, and what takes long is printed as SQL. --repair has the
    indexer check accounts, fetches every repo and writes rows again that are not what it says, and
    recounts; nobody is notified. Safe beside running workers; stop it at any moment and repeat it.
    Exit with 6 if the pipeline cannot use the database, or a dry run finds something to do.
    """
    from rsky_pipeline.database import schema
    from rsky_pipeline.operations import adoption

    if dry_run == apply_:
        raise click.UsageError("give --dry-run or --apply")
    if repair and dry_run:
        raise click.UsageError("--repair is for --apply")
    progress = Progress()
    with run.store("adopt") as store, run.database("adopt") as database:
        found = adoption.examine(
            database, store, run.settings, progress=progress, announce=say,
            margin=adoption.MARGIN_EVENTS if margin is None else margin,
        )  # fmt: skip
        document: dict[str, Any] = asdict(found) | {"usable": found.usable, "done": []}
        if not run.as_json:
            _show_adoption(found)
        if not found.usable:
            run.answer(document, lambda: None)
            return ExitCode.DIFFERENCES
        if dry_run:
            run.answer(document, lambda: None)
            return ExitCode.DIFFERENCES if found.steps else ExitCode.OK
        if repair and found.pushing and not pushing:
            raise CommandError(
                f"{found.pushing[0].subject} would push notifications of old records: disable it "
                "with the statement above, or give --pushing",
                ExitCode.FAILED,
            )
        if any(step.name == adoption.INDEX_FIRST for step in found.steps):
            raise CommandError("make our index first, with the SQL above", ExitCode.FAILED)
        target = (run.settings.database_url or "", run.settings.database_schema)
        document["done"] += schema.initialise(*target)
        for cursor in adoption.take_over(store, found.cursors):
            document["done"].append(f"{cursor.stream} of {cursor.host} begins at {cursor.ours}")
        if not run.as_json:
            _show_lines("", document["done"], "everything was there already")
    code = ExitCode.OK
    if repair:
        code = _repair(run, found, document, progress, 2_000.0 if rate is None else rate)
    run.answer(document, lambda: None)
    return code


def _repair(
    run: Invocation, found: "Adoption", document: dict[str, Any], progress: Progress, rate: float
) -> ExitCode:
    """Repair rows of all accounts, by the ways of single commands."""
    from rsky_pipeline.cli.index_repo import rebuild_repos, show_rebuilt
    from rsky_pipeline.operations.adoption import queue_checks
    from rsky_pipeline.operations.recount import Scope
    from rsky_pipeline.operations.recount import recount as chunks

    with run.database("adopt") as database:
        queued = queue_checks(database, [one.name for one in found.wrong], progress)
    rebuilt = rebuild_repos(run, None, (), "pds", rate, notify=False)
    keys = drifted = 0
    with run.database("recount") as database:
        for chunk in chunks(database, Scope(), repair=True):
            keys += chunk.keys
            drifted += len(chunk.drifts)
            progress(f"{chunk.table}: {keys:,} looked at, {drifted:,} counts had drifted")
    document["repaired"] = {
        "queued": queued, "rebuilt": rebuilt.document(), "recounted": keys, "drifted": drifted,
    }  # fmt: skip
    if not run.as_json:
        for kind, count in queued.items():
            line(f"{kind}: {count:,} accounts are queued for the indexer")
        show_rebuilt(rebuilt, "pds")
        line(f"{keys:,} rows of counts looked at, {drifted:,} counts repaired")
    return ExitCode.FAILED if rebuilt.failed or rebuilt.damaged else ExitCode.OK


def _show_adoption(found: "Adoption") -> None:
    from rsky_pipeline.database.schema import name_releases

    line(f"origin: {found.origin}{f', of {name_releases(found.release)}' if found.release else ''}")
    for sign in found.signs:
        line(f"  {sign}")
    if found.origin == "rust services":
        line("its cursors are in Redis under the names of ours, and go on as they are")
    if found.origin in ("empty", "unknown"):
        say("there is nothing to take over: see `rsky-pipeline db init`"
            if found.origin == "empty" else "it is unknown which state these tables have: let the "
            "official data plane migrate them first")  # fmt: skip
        return
    line(f"about {found.rows:,} rows, {found.bytes / 1e9:,.1f} GB")
    _show_differences(found.differences)
    for one in found.wrong:
        figure = f"{one.wrong:,}" if one.exact else f"about {one.estimate:,}"
        source = "all rows" if one.exact else f"a sample of {one.seen:,}"
        line(f"wrong: {one.table}: {figure} ({source}): {one.text}")
    for cursor in found.cursors:
        if cursor.remark:
            line(f"cursor of {cursor.host} in {cursor.stream} ({cursor.theirs}): {cursor.remark}")
    for who, heading in (
        ("apply", "--apply does"), ("repair", "--repair does"),
        ("operator", "for you to do"),
    ):  # fmt: skip
        for step in found.steps:
            if step.by == who:
                seconds = step.seconds or 0.0
                took = f" (about {duration(seconds)})" if seconds >= 1.0 else ""
                line(f"{heading}: {step.text}{took}")
                for text in filter(None, (step.command, step.sql)):
                    line(f"  {text}")
    if any(step.sql for step in found.steps):
        line("SQL is for `rsky-pipeline db shell`")


@operator_command(command)
@click.option("--force", is_flag=True, help="Have Redis belong to the next indexer's database.")
def pair(run: Invocation, force: bool) -> int:
    """Say whether Redis and the database belong together, or have them do so.

    The first indexer ties a Redis to the database that it writes. Another database is refused,
    since events acknowledged for one would be missing in the other. After a database was replaced
    on purpose, --force has Redis forget the former one, also where no database runs: the next
    indexer ties it to its own, and has everything read and fetched again that this one lacks. Exit
    with 6 if they do not belong together.
    """
    from rsky_pipeline.health.pairing import look
    from rsky_pipeline.streams.marks import forget_database

    group = run.settings.indexer_group
    with run.store("pair") as store:
        if force:
            forget_database(store, group)
            text = f"the next indexer of {group} ties Redis to its database"
            run.answer({"group": group, "noted": None}, lambda: line(text))
            return ExitCode.OK
        with run.database("pair") as database:
            found = look(store, database, group)
    run.answer(asdict(found), lambda: line(found.describe()))
    return ExitCode.DIFFERENCES if found.mismatch else ExitCode.OK


@operator_command(command)
@subjects_argument(metavar="[SUBJECT]...")
@old_option("--did", "dids")
@old_option("--uri", "uris")
@click.option("--all", "everything", is_flag=True, help="All counts.")
@click.option("--dry-run", is_flag=True, help="Report only; exit with 6 if something drifted.")
def recount(
    run: Invocation, given: "Subjects", dids: "Subjects", uris: "Subjects", everything: bool,
    dry_run: bool,
) -> int:  # fmt: skip
    """Recompute counts, and repair drift.

    A SUBJECT is an account (its counts, and those of its records), or one post, feed or labeler.
    Counts are of likes, replies, reposts, quotes, followers, follows and posts. Safe beside running
    indexers; may be interrupted at any point and repeated.
    """
    if everything == bool(given or dids or uris):
        raise click.UsageError("give accounts or records, or --all")
    from rsky_pipeline.operations.recount import Scope
    from rsky_pipeline.operations.recount import recount as chunks

    wanted = run.subjects(given, dids, uris)
    scope = Scope(
        tuple(each.account for each in wanted if not each.collection),
        tuple(each.text for each in wanted if each.collection),
    )
    progress, keys, drifts, count = Progress(), 0, list["Drift"](), 0
    with run.database("recount") as database:
        for chunk in chunks(database, scope, repair=not dry_run):
            keys += chunk.keys
            count += len(chunk.drifts)
            drifts += chunk.drifts[: SHOWN_DRIFTS - len(drifts)]
            progress(f"{chunk.table}: {keys:,} looked at, {count:,} counts had drifted")

    def show() -> None:
        for drift in drifts:
            line(f"{drift.key}  {drift.column}: {drift.stored} -> {drift.counted}")
        if count > len(drifts):
            say(f"{count - len(drifts):,} more are not listed")
        done = "would be repaired" if dry_run else "repaired"
        line(f"{keys:,} rows of counts looked at, {count:,} counts {done}")

    document = {
        "checked": keys, "drifted": count, "repaired": 0 if dry_run else count,
        "drifts": [asdict(drift) for drift in drifts],
    }  # fmt: skip
    run.answer(document, show)
    return ExitCode.DIFFERENCES if dry_run and count else ExitCode.OK


@operator_command(command)
@subjects_argument()
@old_option("--did", "old")
@click.option("--stored", is_flag=True,
              help="Fetch nothing: compare the rows with the records in the database.")  # fmt: skip
def compare(run: Invocation, given: "Subjects", old: "Subjects", stored: bool) -> int:
    """Compare every row of accounts with what their records say.

    Fetches and verifies each repo, and lists records and rows of all tables that are missing,
    additional or different, counts that are off, notifications that are wrong or known to be
    missing, and the commands that put it right. Reads only. Exit with 6 if something differs, with
    1 if a repo cannot be fetched, with 69 if the directory or the hosts could be asked for none of
    them.
    """
    import trio

    from rsky_pipeline.database.selection import load_selection
    from rsky_pipeline.indexer.collections.registry import SelectedCollections
    from rsky_pipeline.operations.compare_repo import compare_repo, compare_stored
    from rsky_pipeline.operations.repos import RepoResult, each_repo, none_reachable
    from rsky_pipeline.repos.repo import Repo
    from rsky_pipeline.runtime.threads import in_thread

    if not given and not old:
        raise click.UsageError("give accounts")
    wanted = run.accounts(given, old)
    outcomes: list[RepoResult[Comparison]] = []
    with run.database("compare") as database:
        selection = load_selection(database)
        collections = SelectedCollections(
            run.settings.collections, run.settings.validation, selection.collections
        )

        async def work(repo: Repo) -> "Comparison":
            arguments = (database, repo, collections)
            return await in_thread(compare_repo, *arguments, limiter=trio.CapacityLimiter(1))

        if stored:
            outcomes += [
                RepoResult(did, compare_stored(database, did, collections)) for did in wanted
            ]
        else:
            trio.run(each_repo, run.settings, wanted, work, outcomes.append)

    def show() -> None:
        for outcome in outcomes:
            _show_comparison(outcome)

    def document(found: "Comparison") -> dict[str, Any]:
        remedies = [complete(remedy).strip("`") for remedy in found.remedies]
        blocks = [
            {"kind": each.kind, "subject": shown_block(each.kind, each.subject)}
            for each in found.blocks
        ]
        return asdict(found) | {
            "differences": found.differences, "remedies": remedies, "blocks": blocks,
        }  # fmt: skip

    run.answer({"repos": [outcome.document(document) for outcome in outcomes]}, show)
    if none_reachable(outcomes):
        return ExitCode.UNAVAILABLE
    if any(outcome.result is None for outcome in outcomes):
        return ExitCode.FAILED
    differ = any(outcome.result and outcome.result.differences for outcome in outcomes)
    return ExitCode.DIFFERENCES if differ else ExitCode.OK


@operator_command(command)
@subjects_argument()
@click.option("--dry-run", is_flag=True, help="Count what would be removed; remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(run: Invocation, given: "Subjects", dry_run: bool, yes: bool) -> int:
    """Remove everything that accounts wrote, as if they had been deleted.

    For a request of erasure: records, all rows made of them, notifications of and for the account,
    its dead letters, and what is kept about fetching it. Events of before stay without effect,
    whenever they come; an account that its host still serves comes back with its next event. Exit
    with 6 if a dry run finds rows. docs/runbook.md lists what stays.
    """
    from rsky_pipeline.indexer.collections import registry
    from rsky_pipeline.indexer.core.entries import now_text
    from rsky_pipeline.operations import dead_letters
    from rsky_pipeline.operations.erasure import erase, held, letters_of

    if not given:
        raise click.UsageError("give accounts")
    dids = run.accounts(given)
    with run.database("purge") as database, run.store("purge") as store:
        rows = {did: held(database, did) for did in dids}
        letters = letters_of(store, dids)
        counts = {stream: len(found) for stream, found in letters.items()}
        if not dry_run:
            total = sum(sum(found.values()) for found in rows.values())
            confirm(f"{total:,} rows and {sum(counts.values()):,} dead letters", yes)
            for did in dids:
                erase(database, did, registry.load(run.settings.validation), now_text())
            for stream, found in letters.items():
                dead_letters.drop(store, stream, iter(found), Progress())

    def show() -> None:
        for did, found in rows.items():
            listed = ", ".join(f"{table} {count:,}" for table, count in found.items())
            line(f"{did}: {'would be removed' if dry_run else 'removed'}: {listed or 'nothing'}")
        for stream, count in counts.items():
            line(f"{stream}: {count:,} letters")

    run.answer({"dry_run": dry_run, "rows": rows, "letters": counts}, show)
    return ExitCode.DIFFERENCES if dry_run and any(rows.values()) else ExitCode.OK


@operator_command(command)
@subjects_argument(metavar="[SUBJECT]")
@old_option("--did", "dids")
@old_option("--uri", "uris")
@click.option("--collection", metavar="NSID", help="Of one collection.")
@click.option("--reason", metavar="CODE", help="For one reason, such as too_long.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(0, 100_000),
              help="Records to list, the newest first; all are counted.")  # fmt: skip
def rejected(
    run: Invocation, given: "Subjects", dids: "Subjects", uris: "Subjects",
    collection: str | None, reason: str | None, limit: int,
) -> None:  # fmt: skip
    """Count and list refused records of all or one account, or one record, with the reason.

    A record is no longer listed once a newer state of it was indexed or it was deleted.
    """
    from rsky_pipeline.indexer.core.rejected import (
        RejectionFilter,
        count_rejections,
        list_rejections,
    )

    subjects = run.subjects(given, dids, uris)
    if len(subjects) > 1:
        raise click.UsageError("give one account or record")
    did = uri = None
    for each in subjects:
        did, uri = (None, each.text) if each.collection else (each.account, None)
    wanted = RejectionFilter(did, uri, collection, reason)
    with run.database("rejected") as database:
        counts = count_rejections(database, wanted)
        listed = list_rejections(database, wanted, limit)

    def show() -> None:
        if not counts:
            line("no rejected records")
            return
        print_table(("COLLECTION", "REASON", "RECORDS"), [(*key, n) for key, n in counts.items()])
        for item in listed:
            stands = "; an older version stands" if item.older else ""
            line(f"{item.at}  {item.rejection.uri}")
            line(f"  {item.rejection.message}{stands}")

    document = {
        "total": sum(counts.values()),
        "counts": [
            {"collection": nsid, "reason": why, "records": count}
            for (nsid, why), count in counts.items()
        ],
        "records": [
            asdict(item.rejection) | {"at": item.at, "older_version_stands": item.older}
            for item in listed
        ],
    }
    run.answer(document, show)


def _show_lines(prefix: str, lines: Sequence[str], otherwise: str) -> None:
    for text in lines:
        line(prefix + text)
    if not lines:
        line(otherwise)


def _show_differences(differences: "Sequence[Difference]") -> None:
    for item in differences:
        if item.severity == "note":
            line(f"note: {item.subject}: {item.found}; {item.advice.partition(': ')[2]}")
            continue
        line(f"{item.severity}: {item.subject}")
        line(f"  expected: {item.expected or 'nothing'}")
        line(f"  found:    {item.found or 'nothing'}")
        line(f"  to do:    {item.advice}")
    errors = _count_errors(differences)
    warnings = sum(item.severity == "warning" for item in differences)
    if errors:
        say(f"errors: {errors}, warnings: {warnings}")
    else:
        line(f"the schema is good{f' (warnings: {warnings})' if warnings else ''}")


def _count_errors(differences: "Sequence[Difference]") -> int:
    return sum(item.severity == "error" for item in differences)


def _show_comparison(outcome: "RepoResult[Comparison]") -> None:
    found = outcome.result
    if found is None:
        say(f"{outcome.did}: {outcome.reason}: {outcome.message}")
        return
    for block in found.blocks:
        name = "it" if block.kind == "account" else f"its host {shown_host(block.subject)}"
        say(f"{found.did}: {name} is blocked: what it has written meanwhile is missing")
    if found.erased:
        say(f"{found.did} was erased up to {found.erased}, and its repo is not newer")
    at = f" at {found.rev}" if found.rev else ""
    line(f"{found.did}{at}: differences: {found.differences}")
    rows = [
        (nsid, *(getattr(of, name) for name in COMPARED)) for nsid, of in found.collections.items()
    ]
    print_table(("COLLECTION", *(name.upper() for name in COMPARED)), rows)
    for nsid, of in found.collections.items():
        for kind, uris in of.examples.items():
            for uri in uris:
                line(f"  {kind}: {uri}")
            if (more := getattr(of, kind) - len(uris)) > 0:
                line(f"  {kind}: {more:,} more of {nsid}")
    for table, of_table in found.rows.items():
        for one in of_table.examples:
            detail = f": {one.detail}" if one.detail else ""
            line(f"  {one.kind} in {table}: {one.uri}{detail}")
        if (more := of_table.total - len(of_table.examples)) > 0:
            line(f"  {more:,} more in {table}")
    for drift in found.counts[:SHOWN_COUNTS]:
        line(f"  count: {drift.key} {drift.column} is {drift.stored}, rows: {drift.counted}")
    if (more := len(found.counts) - SHOWN_COUNTS) > 0:
        line(f"  {more:,} more counts")
    for remedy in found.remedies:
        say(f"run {remedy}")
