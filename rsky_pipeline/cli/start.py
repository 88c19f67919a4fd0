"""`rsky-pipeline start`: start roles in order, in the background."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.moving import (
    configuration_arguments,
    directories,
    finish,
    json_option,
    manager_option,
    roles_option,
    teller,
)
from rsky_pipeline.cli.options import configuration_options
from rsky_pipeline.cli.running import explained
from rsky_pipeline.configuration.topology import ROLE_NAMES, start_order

if TYPE_CHECKING:
    from rsky_pipeline.configuration.settings import Settings
    from rsky_pipeline.operations.ordered.movement import Movement, Tell
    from rsky_pipeline.operations.ordered.supervised import Supervised


@click.command()
@click.option("--ordered", is_flag=True, help="As always: producers first, each ready before next.")
@roles_option
@manager_option
@json_option
@configuration_options
def command(
    ordered: bool, roles: tuple[str, ...], choice: str, as_json: bool, **parameters: Any
) -> None:
    """Start roles: systemd units, or a supervisor in the background (log: data_dir/supervisor.log).

    Roles that were stopped under a running supervisor are started there. Returns when all are
    ready. Exit codes: 0 started, 1 something did not become ready, 4 no answer.
    """
    from rsky_pipeline.operations.ordered import flow
    from rsky_pipeline.operations.ordered.supervised import Supervised

    # What `run` is given; the environment is inherited.
    given = configuration_arguments(parameters)
    settings = directories(parameters)
    wanted = start_order(roles or ROLE_NAMES)
    tell = teller(as_json)
    with explained():
        manager = flow.manager_of(settings, choice)
        if isinstance(manager, Supervised):
            movement = _supervised(manager, settings, wanted, given, tell)
        else:
            movement = flow.start(manager, roles=wanted, tell=tell)
    finish(movement, as_json)


def _supervised(
    manager: "Supervised", settings: "Settings", wanted: tuple[str, ...], given: list[str],
    tell: "Tell",
) -> "Movement":  # fmt: skip
    from rsky_pipeline.operations.ordered import flow
    from rsky_pipeline.operations.ordered.movement import Launch
    from rsky_pipeline.runtime.program import program_command

    there = manager.supervised()
    known = tuple(role for role in wanted if role in there)
    rest = tuple(role for role in wanted if role not in there)
    if not rest:
        return flow.start(manager, roles=known, tell=tell)
    arguments = ("run", *(f"--role={role}" for role in rest), *given)
    launch = Launch(None, arguments, rest, Path.cwd())
    movement = flow.launch(manager, program_command(), launch, tell)
    if known and movement.ok:
        movement.steps += flow.start(manager, roles=known, tell=tell).steps
    return movement
