"""`rsky-pipeline completion`: complete commands, streams, settings and hosts in a shell."""

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import block, line

PROGRAM = "rsky-pipeline"
VARIABLE = "_RSKY_PIPELINE_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
# Where a shell looks by itself: of one account, and of all.
_OWN = {
    "bash": "bash-completion/completions/rsky-pipeline",
    "zsh": "zsh/site-functions/_rsky-pipeline",
    "fish": "fish/vendor_completions.d/rsky-pipeline.fish",
}
_ALL = Path("/usr/local/share")
_shell = click.argument("shell", type=click.Choice(SHELLS), required=False)


@click.group()
def command() -> None:
    """Complete commands, options, streams, settings and hosts in bash, zsh or fish."""


@operator_command(command, configuration=False)
@_shell
def install(run: Invocation, shell: str | None) -> None:
    """Install the completion for a shell (default: that of $SHELL).

    For this account; as root for all. New shells have it.
    """
    name = _chosen(shell)
    base = _ALL if os.geteuid() == 0 else _data_home()
    file = base / _OWN[name]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(script(name))
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}", ExitCode.FAILED) from error
    hint = ""
    if name == "zsh" and base != _ALL:
        hint = f"add to ~/.zshrc, before compinit: fpath=({file.parent} $fpath)"

    def show() -> None:
        line(f"installed {file}; new shells have it")
        if hint:
            line(hint)

    run.answer({"shell": name, "file": str(file), "hint": hint}, show)


@operator_command(command, json=False, configuration=False)
@_shell
def show(run: Invocation, shell: str | None) -> None:
    """Print the completion script of a shell."""
    block(script(_chosen(shell)))


def script(shell: str) -> str:
    """Return the script that has this program complete."""
    from rsky_pipeline.cli import main

    kind = get_completion_class(shell)
    assert kind is not None  # of SHELLS
    completion = kind(main, {}, PROGRAM, VARIABLE)
    # Not `source()`: it runs bash to look at its version.
    return completion.source_template % completion.source_vars()


def _chosen(shell: str | None) -> str:
    name = shell or Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise CommandError(f"name the shell: one of {', '.join(SHELLS)}", ExitCode.USAGE)
    return name


def _data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
