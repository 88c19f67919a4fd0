"""The man page, made of the same texts as `--help`: docs/rsky-pipeline.1, by `make docs`."""

from collections.abc import Iterator

import click

from rsky_pipeline.cli import COMMANDS, main
from rsky_pipeline.cli.command import OperatorCommand, SettingOption
from rsky_pipeline.cli.examples import EXAMPLES
from rsky_pipeline.cli.exit_codes import MEANINGS
from rsky_pipeline.configuration.sources import PREFIX


def man_page() -> str:
    """Return the page in the language of man(7)."""
    lines = [
        '.TH RSKY-PIPELINE 1 "" "rsky-pipeline" "User Commands"',
        ".SH NAME",
        "rsky\\-pipeline \\- feed the database behind a Bluesky AppView from relays",
        ".SH SYNOPSIS",
        ".B rsky\\-pipeline",
        "COMMAND [OPTIONS]",
        ".SH COMMANDS",
    ]
    root = click.Context(main, info_name="rsky-pipeline")
    for name in COMMANDS:
        command = main.get_command(root, name)
        if command is not None:
            lines += _command(command, click.Context(command, info_name=name, parent=root), name)
    lines += [".SH SETTINGS", "Every command that uses the configuration takes"]
    lines += ["\\-\\-config FILE, \\-\\-set NAME=VALUE and options of the commonest settings. Each"]
    lines += [f"setting is also read from the file and from {_text(PREFIX)}NAME."]
    lines += ["`config show` lists them; docs/configuration.md says what each is for."]
    lines += [".SH EXIT STATUS"]
    for code, meaning in MEANINGS.items():
        lines += [".TP", f".B {int(code)}", _text(meaning)]
    lines += [".SH FILES", ".TP", ".I /etc/rsky\\-pipeline/rsky\\-pipeline.toml"]
    lines += ["the configuration, where no other is named"]
    return "\n".join(lines) + "\n"


def _command(command: click.Command, context: click.Context, name: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            if found is not None and not found.hidden:
                inner = click.Context(found, info_name=each, parent=context)
                yield from _command(found, inner, f"{name} {each}")
        return
    usage = " ".join(command.collect_usage_pieces(context))
    yield f'.SS "{_text(name)} {_text(usage)}"'
    for paragraph in (command.help or "").split("\n\n"):
        yield from (_text(" ".join(paragraph.split())), ".PP")
    for option in command.params:
        record = None if isinstance(option, SettingOption) else option.get_help_record(context)
        if record is not None and isinstance(option, click.Option):
            yield from (".TP", f".B {_text(record[0])}", _text(" ".join(record[1].split())))
    if isinstance(command, OperatorCommand) and name in EXAMPLES:
        yield from (".PP", "Example:", ".PP", f".RS\n{_text(EXAMPLES[name])}\n.RE")


def _text(text: str) -> str:
    """Return a text with nothing that the language would read."""
    safe = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{safe}" if safe.startswith((".", "'")) else safe
