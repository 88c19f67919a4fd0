"""The command line: one file a command; parse, call, print.

In: arguments, the environment, a configuration file. Out: a table or one JSON document on standard
output, remarks on standard error, an exit code (`exit_codes`). Read `command` first: the frame of
every command. Only `output` prints. Commands are imported when they are used, and import the
libraries that they call when they run, so that `--help` needs neither trio nor any client. It has
no threads, and no work that another program could call: that is in `operations`.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from typing import IO, Any

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import came_of_printing, line, print_exceptions_safely, say

COMMANDS = {
    "run": "Start and supervise roles in the foreground.",
    "status": "Show roles, rates, lag and stream lengths of a running pipeline.",
    "start": "Start a pipeline in the background, producers first.",
    "stop": "Stop a running pipeline, consumers first.",
    "restart": "Restart the workers of a role, or everything in order.",
    "log-level": "Log more or less, without a restart.",
    "deploy": "Replace the program of a running pipeline, and roll back if that fails.",
    "rollback": "Put an earlier program back.",
    "deployments": "List deployments and rollbacks.",
    "cleanup": "Free the disk of programs and backups that nobody uses.",
    "verify": "Check that a running pipeline is healthy.",
    "monitor": "Watch a running pipeline after a change.",
    "targets": "Print the metrics ports, for Prometheus.",
    "trace": "Find a record or an account in the pipeline.",
    "streams": "Look at the Redis streams, and clean them without losing work.",
    "backfill": "Bring in the history of accounts, show progress, retry, cancel.",
    "load": "Index CAR files straight into PostgreSQL.",
    "cursor": "Show and set the positions of the ingester in relays and labelers.",
    "gaps": "List events of relays that were not seen, and repair the loss.",
    "dlq": "List, show, retry and drop dead letters.",
    "config": "Show or check the configuration.",
    "block": "Leave out accounts, hosts and collections.",
    "db": "Check the database: schema, counts, completeness of a repo, rejected records.",
    "stores": "Look into Redis; move from the embedded stores to your own.",
    "index-repo": "Bring the rows of repos exactly up to date.",
    "completion": "Complete commands, streams, settings and hosts in a shell.",
    "systemd": "Install, remove or show the systemd units.",
    "simulate": "Serve a simulated network on loopback.",
    "demo": "Run the whole pipeline on a simulated network and compare the result.",
}
HIDDEN_COMMANDS = (
    "worker",  # started by the supervisor, not by people
    "load-worker",  # started by `load`
    "prepare-stores",  # started by `run`
    "version",  # `--version` for programs
    "store",  # `store shell`, beside `db shell`
)
ELSEWHERE = {
    "store": ("stores", "command"),
    "rollback": ("deploy", "rollback"),
    "deployments": ("deploy", "deployments"),
}


class _OneLineError(click.UsageError):
    """A usage error in one line."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it for people."""
        path = self.ctx.command_path if self.ctx else "rsky-pipeline"
        message = " ".join(self.format_message().split()).rstrip(".")
        say(f"{message}; see `{path} --help`")


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except (click.exceptions.NoArgsIsHelpError, _OneLineError):
        raise
    except click.UsageError as error:
        message = error.format_message()
        raise _OneLineError(message + _suggestion(message, error.ctx), error.ctx) from error


def _suggestion(message: str, ctx: click.Context | None) -> str:
    """Return the command that was probably meant; click knows only those that are loaded."""
    found = re.match(r"No such command '(.+)'\.?$", message)
    if found is None or ctx is None or not isinstance(ctx.command, click.Group):
        return ""
    close = get_close_matches(found[1], ctx.command.list_commands(ctx), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


class LazyGroup(click.Group):
    """Loads `rsky_pipeline.cli.NAME` when command NAME is used, and takes its `command`."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the program; where standard output cannot be written (a full disk), say why."""
        try:
            return super().main(*args, **options)
        except OSError as error:
            if not came_of_printing(error):
                raise
            say(f"standard output: {error.strerror}")
            sys.exit(ExitCode.FAILED)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options before the command."""
        with _one_line():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse the rest and run the command."""
        with _one_line():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the visible commands in the order of an operator's day."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a known command."""
        if cmd_name not in COMMANDS and cmd_name not in HIDDEN_COMMANDS:
            return None
        module, attribute = ELSEWHERE.get(cmd_name, (cmd_name.replace("-", "_"), "command"))
        command: click.Command = getattr(import_module(f"rsky_pipeline.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command list without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from rsky_pipeline.observability.build import build

        line(f"rsky-pipeline {build().describe()}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong option or setting, 3 not running, 4 no answer, "
    "5 stopped by force, 6 differences found, 69 store or host unavailable, 75 already running, "
    "77 no permission, 78 worker configuration.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print version, commit and build time. (`version --json` for scripts.)",
)
def main() -> None:
    """Feed the PostgreSQL database behind a Bluesky AppView from AT Protocol relays."""
    print_exceptions_safely()
