"""What `start`, `stop` and `restart` share when they move roles in order."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import loaded
from rsky_pipeline.cli.output import print_json, say
from rsky_pipeline.configuration.topology import ROLE_NAMES

if TYPE_CHECKING:
    from rsky_pipeline.configuration.settings import Settings
    from rsky_pipeline.operations.ordered.movement import Movement

Command = TypeVar("Command", bound=Callable[..., Any])

manager_option = click.option(
    "--manager",
    "choice",
    type=click.Choice(["auto", "supervisor", "systemd"]),
    default="auto",
    show_default=True,
    help="Who runs the roles: our own supervisors or systemd units; auto finds out.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
roles_option = click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(ROLE_NAMES),
    help="Only this role; may be repeated.",
)


def directories(parameters: dict[str, Any]) -> "Settings":
    """Return the configured settings with directories and the URLs of embedded stores."""
    from rsky_pipeline.embedded.locations import resolve_directories, store_urls

    return store_urls(resolve_directories(loaded(parameters).settings))


def teller(as_json: bool) -> Callable[[str], None]:
    """Return where lines go while it lasts: not among the JSON."""
    return say if as_json else click.echo


def finish(movement: "Movement", as_json: bool) -> None:
    """Print the document if it is wanted, and end the command with its exit code."""
    if as_json:
        print_json(movement.document())
    if movement.forced:
        raise click.exceptions.Exit(ExitCode.FORCED)
    if not movement.ok:
        raise click.exceptions.Exit(ExitCode.FAILED)


def configuration_arguments(parameters: dict[str, Any]) -> list[str]:
    """Return the options of `configuration_options` as they were given, for another command."""
    flags = {each.name: each.opts[0] for each in click.get_current_context().command.params}
    found = []
    for name, value in parameters.items():
        values = value if isinstance(value, tuple) else (() if value is None else (value,))
        found += [f"{flags[name]}={one}" for one in values]
    return found
