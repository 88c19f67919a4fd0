"""Options and the end of commands that move roles: `start`, `stop`, `restart`, `deploy`."""

from typing import TYPE_CHECKING

import click

from rsky_pipeline.cli.command import CommandError, Invocation
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.configuration.topology import ROLE_NAMES

if TYPE_CHECKING:
    from rsky_pipeline.operations.ordered.movement import Manager, Movement

manager_option = click.option("--manager", "choice",
    type=click.Choice(["auto", "supervisor", "systemd"]), default="auto", show_default=True,
    help="Who runs the roles: our own supervisors or systemd units; auto finds out.")  # fmt: skip
roles_option = click.option("--role", "roles", multiple=True, type=click.Choice(ROLE_NAMES),
    help="Only this role; may be repeated.")  # fmt: skip


def finish(run: Invocation, movement: "Movement") -> int:
    """Print the document with `--json`, and return the exit code; people saw each step."""
    run.answer(movement.document(), lambda: None)
    if movement.forced:
        return ExitCode.FORCED
    return ExitCode.OK if movement.ok else ExitCode.FAILED


def not_running(run: Invocation, manager: "Manager", problem: str) -> CommandError:
    """Answer that there is nothing to move; returns the error that ends the command."""
    from rsky_pipeline.operations.ordered.movement import Movement

    document = {**Movement(manager.name).document(), "ok": False, "problem": problem}
    run.answer(document, lambda: None)
    return CommandError(problem, ExitCode.NOT_RUNNING)
