"""Texts of strangers cannot command the terminal, and only one file writes to it."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import rsky_pipeline
from rsky_pipeline.cli import main, output
from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.network.http import HttpError
from rsky_pipeline.network.subscription import DisconnectedError, DisconnectReason
from rsky_pipeline.runtime.errors import SettingError, described, printable

HOSTILE = "Invalid\x1b]0;owned\x07\x1b[2J\x9b31m\r\nforged: ok\u202e\u2028\x7f"
HARMLESS = "naïve 日本語 🦋 a\\b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HARMLESS, HARMLESS),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\tb\nc\r", r"a\tb\nc\r"),
        ("\x9b2J\x7f\x00", r"\x9b2J\x7f\x00"),
        ("user\u202egnp.exe\u2028\ufeff", r"user\u202egnp.exe\u2028\ufeff"),
        ("\ud800", r"\ud800"),
        (7, "7"),
    ],
)
def test_a_text_is_shown_in_one_line_that_commands_nothing(text: object, shown: str) -> None:
    assert printable(text) == shown


def test_every_way_of_printing_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    output.line(HOSTILE)
    output.say(HOSTILE)
    output.print_table((HOSTILE, "B"), [(HOSTILE, 1)])
    output.block(f"{HOSTILE}\nnext")
    output.print_json({HOSTILE: [HOSTILE, HARMLESS]})
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert text
        assert not [letter for letter in text if letter != "\n" and not letter.isprintable()]


@pytest.mark.parametrize("arguments", [["version", "--json"], ["--help"], ["--version"]])
def test_an_answer_that_cannot_be_written_ends_with_the_reason(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rsky_pipeline", *arguments],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "rsky-pipeline: standard output: No space left on device\n"


def test_json_keeps_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"error": HOSTILE, "other": HARMLESS, "none": None}
    output.print_json(document)
    assert json.loads(capsys.readouterr().out) == document
    output.print_json(document, indent=None)
    assert capsys.readouterr().out.count("\n") == 1


def test_an_error_of_a_command_is_printable() -> None:
    @operator_command(name="fails", configuration=False)
    def fails(_: Invocation) -> None:
        raise CommandError(HOSTILE, 4, more=(HOSTILE,))

    result = CliRunner().invoke(fails, [])
    assert result.exit_code == 4
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first == second == f"rsky-pipeline: {printable(HOSTILE)}"


def test_a_wrong_argument_is_printable() -> None:
    result = CliRunner().invoke(main, ["status", "--no\x1b[2J"])
    assert result.exit_code == 2
    assert "\x1b" not in result.output


def test_an_exception_that_nobody_expected_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        output.print_traceback(ValueError, error, error.__traceback__)
    printed = capsys.readouterr().err
    assert "test_an_exception_that_nobody_expected" in printed
    assert not [letter for letter in printed if letter != "\n" and not letter.isprintable()]


def test_messages_that_quote_a_stranger_are_printable_where_they_are_made() -> None:
    errors = (
        HttpError("status", f"https://h answered 400 {HOSTILE}" + "x" * 100_000, status=400),
        DisconnectedError(DisconnectReason.ERROR_FRAME, HOSTILE + "x" * 100_000),
        SettingError(described(ValueError(HOSTILE))),
    )
    for error in errors:
        text = f"{error} {getattr(error, 'detail', '')}"
        assert not [letter for letter in text if not letter.isprintable()]
        assert len(text) < 5_000


def callers(names: set[str], *folders: str) -> list[str]:
    """Return the files that call something of these names."""
    root = Path(rsky_pipeline.__file__).parent
    found = set()
    for path in (path for folder in folders for path in root.glob(folder)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
                name = node.func.id if isinstance(node.func, ast.Name) else name
                if name in names and "development" not in path.parts:
                    found.add(path.name)
    return sorted(found)


def test_only_one_file_prints() -> None:
    # They answer their parents by lines of JSON.
    assert callers({"write"}, "cli/*.py") == ["load_worker.py", "prepare_stores.py"]
    # The views of rich print counts, and what they have from strangers by `printable`.
    printing = callers({"echo", "secho", "print"}, "**/*.py")
    assert printing == ["demonstration.py", "output.py", "view.py"]


@pytest.mark.parametrize(("value", "coloured"), [(None, True), ("", True), ("1", False)])
def test_colours_are_for_those_who_want_them(
    value: str | None, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    @operator_command(name="try", configuration=False)
    def command(run: Invocation) -> None:
        output.line(" figure", label="fail", colour="red")

    monkeypatch.delenv("NO_COLOR", raising=False)
    if value is not None:
        monkeypatch.setenv("NO_COLOR", value)
    shown = CliRunner().invoke(command, [], color=True).stdout
    assert shown == ("\x1b[31mfail\x1b[0m figure\n" if coloured else "fail figure\n")
    assert CliRunner().invoke(command, []).stdout == "fail figure\n"
