"""`rsky-pipeline deploy`, `rollback`, `deployments`: replace the program of a running pipeline."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rsky_pipeline.cli.command import DURATION, CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.moving import manager_option
from rsky_pipeline.cli.output import line, print_table, say

if TYPE_CHECKING:
    from rsky_pipeline.operations.deployment.deploy import Deployer, DeploymentOutcome

Command = TypeVar("Command", bound=Callable[..., Any])


def deployment_options(command: Command) -> Command:
    """Add the options that `deploy` and `rollback` share; most are fields of DeploymentOrder."""
    options = (
        click.option("--watch", type=DURATION, default="5m", show_default=True, metavar="DURATION",
                     help="How long it must stay well afterwards; 0 does not wait."),
        click.option("--verify-window", type=DURATION, default="30s", show_default=True,
                     metavar="DURATION", help="How long `verify` measures rates."),
        click.option("--verify-for", "verify_limit", type=DURATION, default="3m",
                     show_default=True, metavar="DURATION",
                     help="How long it may take to become well."),
        click.option("--accept", multiple=True, metavar="CHECK",
                     help="A check of `verify` (or the beginning of its name) that may fail."),
        click.option("--timeout", "deadline", type=click.FloatRange(min=0), metavar="SECONDS",
                     help="Longest stop of a role before it is forced."),
        click.option("--dry-run", is_flag=True, help="Print the plan and its checks; do nothing."),
        manager_option,
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@operator_command(name="deploy")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--resume", is_flag=True, help="Go on with the deployment that was interrupted.")
@click.option("--purge", multiple=True, metavar="STREAM:TYPE",
              help="While everything is stopped, remove polluting entries of a type from a stream: "
              "firehose_live:repo.")  # fmt: skip
@deployment_options
def command(
    run: Invocation, file: Path | None, resume: bool, purge: tuple[str, ...], dry_run: bool,
    choice: str, **options: Any,
) -> int:  # fmt: skip
    """Replace the program of a running pipeline by FILE, and roll back if that fails.

    Checks the file, stops consumers first, keeps a backup, swaps, migrates, cleans, starts
    producers first, verifies and watches. A deployment that was interrupted (a kill, a reboot) goes
    on with --resume; another one undoes it first. What nobody needs any more is removed at the end.

    Exit codes: 0 deployed, 1 refused, or failed and rolled back, 3 nothing is running, 6 a
    verification failed and it was rolled back, 75 another deployment is running.
    """
    from rsky_pipeline.operations.deployment.deploy import DeploymentOrder

    if (file is None) != resume or (resume and (purge or dry_run)):
        raise click.UsageError("give a FILE, or --resume alone")
    order = DeploymentOrder(file or Path(), purge=_purges(purge), **options)
    if resume:
        with _deployer(run, choice, dry_run=False) as worker:
            return _finish(run, worker.resume(order))
    with _deployer(run, choice, dry_run=dry_run) as worker:
        interrupted = worker.journal.unfinished() if dry_run else worker.recover()
        if interrupted is not None and dry_run:
            say(
                f"the interrupted {interrupted.plan['kind']} {interrupted.id} would be undone first"
            )
        outcome = worker.run(order, dry_run=dry_run)
        outcome.recovered = interrupted.id if interrupted and not dry_run else None
    return _finish(run, outcome)


@operator_command()
@click.argument("timestamp", required=False)
@deployment_options
def rollback(
    run: Invocation, timestamp: str | None, dry_run: bool, choice: str, **options: Any
) -> int:
    """Put the newest backup of another version back, or that of TIMESTAMP, with the steps of
    `deploy`.

    A deployment that was interrupted is undone; without TIMESTAMP nothing else is. Exit codes are
    those of `deploy`.
    """
    from rsky_pipeline.operations.deployment.deploy import DeploymentOrder
    from rsky_pipeline.operations.deployment.program import backups, find_target, latest_other

    with _deployer(run, choice, dry_run=dry_run) as worker:
        interrupted = worker.journal.unfinished() if dry_run else worker.recover()
        if interrupted is not None:
            if timestamp is not None and dry_run:
                say(f"would be undone first: {interrupted.plan['kind']} {interrupted.id}")
            if timestamp is None:
                done = "would be undone" if dry_run else "undone"
                say(f"{done}: {interrupted.plan['kind']} {interrupted.id}")
                key = "would_recover" if dry_run else "recovered"
                run.answer({"ok": True, key: interrupted.id}, lambda: None)
                return ExitCode.OK
        program = find_target(worker.settings, worker.manager).program
        known = backups(program)
        if not known:
            raise CommandError(f"there is no backup of {program}", ExitCode.FAILED)
        stamp = timestamp or latest_other(program)
        if stamp is None:
            text = f"every backup of {program} is the file as it is"
            raise CommandError(text, ExitCode.FAILED)
        if stamp not in known:
            raise CommandError(f"no backup {stamp}; there are {', '.join(known)}", ExitCode.USAGE)
        outcome = worker.run(DeploymentOrder(known[stamp], "rollback", **options), dry_run=dry_run)
    return _finish(run, outcome)


@click.group()
def deployments() -> None:
    """List deployments and rollbacks."""


@operator_command(deployments, "list")
def list_deployments(run: Invocation) -> None:
    """List deployments and rollbacks, the newest last.

    The journal is data_dir/deployments.jsonl.
    """
    from rsky_pipeline.embedded.locations import data_directory
    from rsky_pipeline.operations.deployment.journal import Journal

    journal = Journal(data_directory(run.settings))
    try:
        entries = journal.entries()
    except OSError as error:
        raise CommandError(f"{journal.path}: {error.strerror}", ExitCode.NO_PERMISSION) from error
    rows = [
        (
            entry.id,
            datetime.fromtimestamp(entry.began).astimezone().isoformat(timespec="seconds"),
            entry.plan["kind"],
            entry.outcome or "unfinished",
            entry.plan["from"],
            entry.plan["to"],
            entry.reason or "-",
        )
        for entry in entries
    ]
    header = ("ID", "BEGAN", "KIND", "OUTCOME", "FROM", "TO", "REASON")
    run.answer(
        {"deployments": [entry.document() for entry in entries]}, lambda: print_table(header, rows)
    )


def _purges(texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Read `--purge`; a pair that `streams purge` would refuse is refused before anything stops."""
    from rsky_pipeline.operations.cleaning import POLLUTION

    known = {
        f"{stream}:{kind}": (stream, kind) for stream in POLLUTION for kind in POLLUTION[stream]
    }
    for text in texts:
        if text not in known:
            raise click.UsageError(f"--purge {text[:100]!r}: known are {', '.join(known)}")
    return tuple(known[text] for text in texts)


@contextmanager
def _deployer(run: Invocation, choice: str, *, dry_run: bool) -> Iterator["Deployer"]:
    """Yield a deployer that is alone in its data directory; a dry run need not be."""
    from rsky_pipeline.embedded.locations import data_directory
    from rsky_pipeline.operations.deployment.deploy import Deployer
    from rsky_pipeline.operations.deployment.journal import lock_path
    from rsky_pipeline.operations.ordered import flow
    from rsky_pipeline.runtime.lock import acquire

    manager = flow.manager_of(run.loaded, run.settings, choice)
    environment = run.loaded.units_environment
    worker = Deployer(run.settings, manager, run.given, run.tell, environment)
    lock = None
    if not dry_run:
        lock = acquire(lock_path(data_directory(run.settings)))
        if lock is None:
            raise CommandError("another deployment is running here", ExitCode.ALREADY_RUNNING)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # undone as by Ctrl-C
    try:
        yield worker
    except OSError as error:
        raise CommandError(str(error), ExitCode.FAILED) from error
    finally:
        signal.signal(signal.SIGTERM, before)
        if lock is not None:
            lock.let_go()


def _finish(run: Invocation, outcome: "DeploymentOutcome") -> int:
    good = outcome.outcome in ("deployed", "planned")
    run.answer({**asdict(outcome), "ok": good}, lambda: _show(outcome))
    if outcome.outcome == "failed":
        say("look at `rsky-pipeline status`; `rsky-pipeline rollback` tries again to go back")
    if outcome.failed_step in ("verify", "watch"):
        return ExitCode.DIFFERENCES
    return ExitCode.OK if good and not outcome.reason else ExitCode.FAILED


def _show(outcome: "DeploymentOutcome") -> None:
    if outcome.outcome == "planned":
        _show_plan(outcome)
    else:
        done = outcome.outcome
        if done == "deployed":
            verb = "put back" if outcome.plan.get("kind") == "rollback" else done
            done = f"{verb}: {outcome.plan.get('to', outcome.id)}"
        say(f"{done}{f': {outcome.reason}' if outcome.reason else ''}")


def _show_plan(outcome: "DeploymentOutcome") -> None:
    plan = outcome.plan
    line()
    line(f"{plan['program']} under {plan['manager']}: {', '.join(plan['roles'])}")
    line(f"  from  {plan['from']}")
    line(f"  to    {plan['to']}  ({plan['source']})")
    words = {
        "stop": "stop consumers first, each step verified",
        "backup": f"keep the current file as {plan['backup']}",
        "swap": "put the new file in its place",
        "migrate": "let the new file bring the schema up to date",
        "clean": f"remove {', '.join(plan['purge'])}",
        "start": "start producers first, each ready before the next",
        "verify": "verify with the new file; going back if it fails",
        "watch": f"watch for {plan['watch_seconds']:.0f} s; going back if it fails",
    }
    for number, step in enumerate(plan["steps"], 1):
        line(f"  {number}. {words[step]}")
    if outcome.reason:
        line(f"it would be refused: {outcome.reason}")
