"""Options that commands share, and loading the configuration from them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import fail
from rsky_pipeline.configuration.load import ConfigurationError, Loaded, load
from rsky_pipeline.configuration.settings import declarations

Command = TypeVar("Command", bound=Callable[..., Any])

# The settings that deserve a flag of their own; every other one is set by --set.
_FLAGS = (
    "relay_hosts", "labeler_hosts", "plc_url", "redis_url", "database_url", "data_dir", "run_dir",
    "initial_cursor", "verify", "log_level", "log_format",
)  # fmt: skip
_PARAMETER = "flag_{}"


def configuration_options(command: Command) -> Command:
    """Add --config, --set and the flags of the commonest settings; read them with `loaded`."""
    known = declarations()
    for name in reversed(_FLAGS):
        command = click.option(
            f"--{name.replace('_', '-')}",
            _PARAMETER.format(name),
            metavar="VALUE",
            help=known[name].help,
        )(command)
    command = click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="NAME=VALUE",
        help="Any setting of docs/configuration.md; may be repeated.",
    )(command)
    return click.option(
        "--config",
        "config_file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="TOML file. Default: $RSKY_PIPELINE_CONFIG, ./rsky-pipeline.toml, "
        "/etc/rsky-pipeline/rsky-pipeline.toml.",
    )(command)


def loaded(parameters: dict[str, Any]) -> Loaded:
    """Load the configuration from the options of `configuration_options`, which are taken out.

    A problem is printed, a line each, and ends the command with exit code 2.
    """
    flags: dict[str, str] = {}
    for name in _FLAGS:
        value = parameters.pop(_PARAMETER.format(name), None)
        if value is not None:
            flags[name] = value
    for assignment in parameters.pop("assignments", ()):
        name, separator, value = assignment.partition("=")
        if not separator:
            raise fail(f"--set {assignment!r}: allowed is NAME=VALUE", ExitCode.USAGE)
        flags[name.strip().replace("-", "_")] = value
    try:
        return load(parameters.pop("config_file", None), os.environ, flags)
    except ConfigurationError as error:
        for problem in error.problems[:-1]:
            click.echo(f"rsky-pipeline: {problem}", err=True)
        raise fail(error.problems[-1], ExitCode.USAGE) from error
