"""`rsky-pipeline start`: start roles in order, in the background."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rsky_pipeline.cli.command import Invocation, operator_command
from rsky_pipeline.cli.moving import finish, manager_option, roles_option
from rsky_pipeline.cli.output import say
from rsky_pipeline.configuration.topology import ROLE_NAMES, start_order

if TYPE_CHECKING:
    from rsky_pipeline.operations.ordered.movement import Movement
    from rsky_pipeline.operations.ordered.supervised import Supervised


@operator_command(name="start")
@click.option(
    "--ordered",
    is_flag=True,
    help="No effect: producers always start first, each ready before the next.",
)
@roles_option
@manager_option
def command(run: Invocation, ordered: bool, roles: tuple[str, ...], choice: str) -> int:
    """Start roles: systemd units, or a supervisor in the background (log: data_dir/supervisor.log).

    Roles that were stopped under a running supervisor are started there. Returns when all are
    ready. Exit codes: 0 started, 1 something did not become ready, 4 no answer.
    """
    from rsky_pipeline.embedded.locations import data_directory
    from rsky_pipeline.operations.deployment.journal import interrupted
    from rsky_pipeline.operations.ordered import flow
    from rsky_pipeline.operations.ordered.supervised import Supervised

    if (entry := interrupted(data_directory(run.settings))) is not None:
        say(entry.describe())
    wanted = start_order(roles or ROLE_NAMES)
    manager = flow.manager_of(run.loaded, run.settings, choice)
    if isinstance(manager, Supervised):
        movement = _supervised(manager, run, wanted)
    else:
        movement = flow.start(manager, roles=wanted, tell=run.tell)
    return finish(run, movement)


def _supervised(manager: "Supervised", run: Invocation, wanted: tuple[str, ...]) -> "Movement":
    from rsky_pipeline.operations.ordered import flow
    from rsky_pipeline.operations.ordered.movement import Launch
    from rsky_pipeline.runtime.program import program_command

    there = manager.supervised()
    known = tuple(role for role in wanted if role in there)
    rest = tuple(role for role in wanted if role not in there)
    manager.reload(known, run.tell)
    if not rest:
        return flow.start(manager, roles=known, tell=run.tell)
    # `run` is given the options of this command; it inherits the environment.
    arguments = ("run", *(f"--role={role}" for role in rest), *run.given)
    launch = Launch(None, arguments, rest, Path.cwd())
    movement = flow.launch(manager, program_command(), launch, run.tell)
    if known and movement.ok:
        movement.steps += flow.start(manager, roles=known, tell=run.tell).steps
    return movement
