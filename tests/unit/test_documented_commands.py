"""Every `rsky-pipeline ...` line in README and docs/ is a command with options that exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from rsky_pipeline.cli import main
from rsky_pipeline.development.documents import ROOT

_PROMPTS = re.compile(r"^(?:\$ |sudo |\.venv/bin/|dist/|/usr/local/bin/|[A-Z_]+=\S+ )*")
_INLINE = re.compile(r"`((?:\.venv/bin/|dist/|sudo )*rsky-pipeline [^`]+)`")


def pages() -> Iterator[Path]:
    yield from (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def documented() -> Iterator[tuple[str, str]]:
    """Yield each command line and the page it stands on."""
    for page in pages():
        name = str(page.relative_to(ROOT))
        text = page.read_text()
        for line in (*text.splitlines(), *_INLINE.findall(text.replace("\n", " "))):
            command = _PROMPTS.sub("", line.strip())
            if command.startswith("rsky-pipeline "):
                yield name, command.removeprefix("rsky-pipeline ").partition(" #")[0].strip()


LINES = sorted(set(documented()))


def problem(words: list[str], command: click.Command, context: click.Context) -> str | None:
    """Return what is wrong with the words that follow a command, None if nothing is."""
    if isinstance(command, click.Group):
        if not words or words[0] == "--help" or "|" in words[0]:
            return None
        if words[0].startswith("-"):
            known = {name for option in command.params for name in option.opts} | {"-h", "--help"}
            return None if words[0] in known else f"no option {words[0]}"
        sub = command.get_command(context, words[0])
        if sub is None:
            return f"no command {words[0]}"
        return problem(words[1:], sub, click.Context(sub, info_name=words[0], parent=context))
    if "--help" in words:
        return None
    options = {
        name: option for option in command.params if isinstance(option, click.Option)
        for name in (*option.opts, *option.secondary_opts)
    }  # fmt: skip
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    most = sum(each.nargs for each in arguments) if all(a.nargs > 0 for a in arguments) else 1_000
    least = sum(each.required for each in arguments)
    position, given, used = 0, 0, set[str | None]()
    if "--" in words:  # what follows is for another program
        given = len(words) - words.index("--") - 1
        words = words[: words.index("--")]
    while position < len(words):
        name, _, value = words[position].partition("=")
        if name.startswith("-"):
            option = options.get(name)
            if option is None:
                return f"no option {name}"
            used.add(option.name)
            if not option.is_flag and not value:
                position += 1
                if position >= len(words):
                    return f"{name} needs a value"
        else:
            given += 1
        position += 1
    if not words:
        return None  # the command is mentioned, not shown
    missing = [each.name for each in options.values() if each.required and each.name not in used]
    if missing or given < least:
        return f"too few arguments, or no {missing}"
    return "too many arguments" if given > most else None


def test_there_are_many() -> None:
    assert len(LINES) > 30


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: value)
def test_the_line_names_a_command_and_options_that_exist(page: str, line: str) -> None:
    words = shlex.split(re.split(r" (?:[|>&]|2>)", line)[0].rstrip(";"))
    assert problem(words, main, click.Context(main, info_name="rsky-pipeline")) is None, page


@pytest.mark.parametrize(
    "line",
    [
        "statis",
        "status --jsn",
        "stop --timeout",
        "streams trimm x",
        "--verbose",
        "db check did:plc:x",
        "restart indexer backfiller",
        "cursor set bsky.network --force",
    ],
)
def test_wrong_lines_are_noticed(line: str) -> None:
    assert problem(line.split(), main, click.Context(main, info_name="rsky-pipeline"))
