"""Options that commands share, and loading the configuration from them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import fail, say
from rsky_pipeline.configuration.load import ConfigurationError, Loaded, load
from rsky_pipeline.configuration.settings import declarations

Command = TypeVar("Command", bound=Callable[..., Any])

# The settings that deserve a flag of their own; every other one is set by --set.
FLAGS = (
    "relay_hosts", "labeler_hosts", "plc_url", "redis_url", "database_url", "data_dir", "run_dir",
    "initial_cursor", "verify", "log_level", "log_format",
)  # fmt: skip
# Lists also have a flag for one item, which can be repeated.
ITEM_FLAGS = {"--relay": "relay_hosts", "--labeler": "labeler_hosts"}
_PARAMETER = "flag_{}"
_ITEM_PARAMETER = "items_{}"


def configuration_options(command: Command) -> Command:
    """Add --config, --set and the flags of the commonest settings; read them with `loaded`."""
    known = declarations()
    for name in reversed(FLAGS):
        command = click.option(
            f"--{name.replace('_', '-')}",
            _PARAMETER.format(name),
            metavar="A,B" if name in ITEM_FLAGS.values() else "VALUE",
            help=known[name].help,
        )(command)
    for flag, name in ITEM_FLAGS.items():
        command = click.option(
            flag,
            _ITEM_PARAMETER.format(name),
            multiple=True,
            metavar="HOST",
            help=f"One of {name}; may be repeated.",
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
        type=click.Path(path_type=Path),
        help="TOML file. Default: $RSKY_PIPELINE_CONFIG, ./rsky-pipeline.toml, "
        "/etc/rsky-pipeline/rsky-pipeline.toml.",
    )(command)


def loaded(parameters: dict[str, Any]) -> Loaded:
    """Load the configuration from the options of `configuration_options`, which are taken out.

    A problem is printed, a line each, and ends the command with exit code 2.
    """
    try:
        return attempt(parameters)
    except ConfigurationError as error:
        for problem in error.problems[:-1]:
            say(problem)
        raise fail(error.problems[-1], ExitCode.USAGE) from error


def attempt(parameters: dict[str, Any]) -> Loaded:
    """Do what `loaded` does, but raise ConfigurationError with the problems."""
    flags, spelled, problems = _flags(parameters)
    try:
        result = load(parameters.pop("config_file", None), os.environ, flags, spelled)
    except ConfigurationError as error:
        raise ConfigurationError([*problems, *error.problems]) from error
    if problems:
        raise ConfigurationError(problems)
    return result


def _flags(parameters: dict[str, Any]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Return the texts by setting, how each was spelled if unusually, and what contradicts."""
    flags: dict[str, str] = {}
    spelled: dict[str, str] = {}
    problems: list[str] = []

    def take(name: str, value: str, spelling: str) -> None:
        if name in flags:
            problems.append(f"{name}: {spelled[name]} and {spelling} both set it: give one")
        flags[name], spelled[name] = value, spelling

    for name in FLAGS:
        value = parameters.pop(_PARAMETER.format(name), None)
        if value is not None:
            take(name, value, f"--{name.replace('_', '-')}")
    for flag, name in ITEM_FLAGS.items():
        items = parameters.pop(_ITEM_PARAMETER.format(name), ())
        if items:
            take(name, ",".join(items), flag)
    for assignment in parameters.pop("assignments", ()):
        name, separator, value = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not separator:
            # A value alone could be a secret: it is not repeated.
            problems.append("--set: allowed is NAME=VALUE, such as indexer_batch_size=500")
            continue
        take(name, value, f"--set {name}")
    return flags, spelled, problems
