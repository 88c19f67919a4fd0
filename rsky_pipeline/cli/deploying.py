"""What `deploy` and `rollback` share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rsky_pipeline.cli.durations import DURATION
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.moving import (
    configuration_arguments,
    directories,
    json_option,
    manager_option,
    teller,
)
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.output import fail, print_json, say
from rsky_pipeline.cli.running import explained

if TYPE_CHECKING:
    from rsky_pipeline.operations.deployment.deploy import Deployer, Outcome

Command = TypeVar("Command", bound=Callable[..., Any])


def deployment_options(command: Command) -> Command:
    """Add the options of both commands."""
    options = (
        click.option("--watch", type=DURATION, default="5m", show_default=True, metavar="DURATION",
                     help="How long it must stay well afterwards; 0 does not wait."),
        click.option("--verify-window", type=DURATION, default="10s", show_default=True,
                     metavar="DURATION", help="How long `verify` measures rates."),
        click.option("--verify-for", type=DURATION, default="3m", show_default=True,
                     metavar="DURATION", help="How long it may take to become well."),
        click.option("--accept", multiple=True, metavar="CHECK",
                     help="A check of `verify` (or the beginning of its name) that may fail."),
        click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS",
                     help="Longest stop of a role before it is forced."),
        click.option("--dry-run", is_flag=True, help="Print the plan and its checks; do nothing."),
        manager_option,
        json_option,
        configuration_options,
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@contextmanager
def deployer(
    parameters: dict[str, Any], choice: str, as_json: bool, *, dry_run: bool
) -> Iterator["Deployer"]:
    """Yield a deployer that is alone in its data directory; a dry run need not be."""
    from rsky_pipeline.embedded.locations import data_directory
    from rsky_pipeline.operations.deployment.deploy import Deployer
    from rsky_pipeline.operations.ordered import flow
    from rsky_pipeline.runtime.lock import acquire

    given = configuration_arguments(parameters)
    settings = directories(parameters)
    with explained():
        worker = Deployer(settings, flow.manager_of(settings, choice), given, teller(as_json))
        lock = None
        if not dry_run:
            path = data_directory(settings) / "locks" / "deployment.lock"
            lock = acquire(path)
            if lock is None:
                raise fail("another deployment is running here", ExitCode.ALREADY_RUNNING)
            lock.name_us()
        try:
            yield worker
        except OSError as error:
            raise fail(str(error), ExitCode.FAILED) from error
        finally:
            if lock is not None:
                lock.let_go()


def finish(outcome: "Outcome", as_json: bool) -> None:
    """Say how it ended; end the command with its exit code."""
    if as_json:
        print_json({**asdict(outcome), "ok": outcome.outcome in ("deployed", "planned")})
    elif outcome.outcome == "planned":
        show_plan(outcome)
    else:
        say(f"{outcome.outcome}{f': {outcome.reason}' if outcome.reason else ''}")
    if outcome.outcome == "failed":
        say("look at `rsky-pipeline status`; `rsky-pipeline rollback` tries again to go back")
    if outcome.failed_step in ("verify", "watch"):
        raise click.exceptions.Exit(ExitCode.DIFFERENCES)
    if outcome.outcome not in ("deployed", "planned") or outcome.reason:
        raise click.exceptions.Exit(ExitCode.FAILED)


def show_plan(outcome: "Outcome") -> None:
    """Print what would be done."""
    plan = outcome.plan
    click.echo(f"\n{plan['program']} under {plan['manager']}: {', '.join(plan['roles'])}")
    click.echo(f"  from  {plan['from']}")
    click.echo(f"  to    {plan['to']}  ({plan['source']})")
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
        click.echo(f"  {number}. {words[step]}")
    if outcome.reason:
        click.echo(f"it would be refused: {outcome.reason}")
