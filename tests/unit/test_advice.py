"""Commands that messages advise exist, with their options, and do not ask for another one."""

import ast
import logging
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import rsky_pipeline
from rsky_pipeline.cli import main, output
from rsky_pipeline.configuration import advice as advice_module
from rsky_pipeline.configuration.advice import advised, complete
from rsky_pipeline.health.rules import DATABASE, RULES, RuleVerdict
from rsky_pipeline.runtime.findings import written
from rsky_pipeline.runtime.logging import JsonLines, TextLines
from tests.unit.test_documented_commands import problem

ROOT = Path(rsky_pipeline.__file__).parent
_COMMAND = re.compile(r"`rsky-pipeline ([^`]+)`")
# Commands that refuse or ask without an option: who advises one must name it.
_NEEDS = {("cursor", "reset"): "--force", ("db", "pair"): "--force"}


def text_of(node: ast.AST) -> str | None:
    """Return a string of a source; a value that is put into it is the word X."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(each) or "X" for each in node.values)
    return None


def advice(source: str) -> Iterator[str]:
    """Yield the commands that the strings of a source advise, docstrings left out."""
    tree = ast.parse(source)
    documented = {
        id(node.value) for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }  # fmt: skip
    inner = {
        id(each) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
        for each in node.values
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == advised.__name__:
            words = (each for each in node.args if not isinstance(each, ast.Starred))
            yield " ".join(text_of(each) or "X" for each in words)
        if id(node) in documented | inner or (text := text_of(node)) is None:
            continue
        yield from (found.replace("{subject}", "X") for found in _COMMAND.findall(text))


# What is only a value is a command that is made, and checked, elsewhere; `advice.py` makes them.
ADVISED = sorted(
    {
        found
        for path in ROOT.rglob("*.py")
        if path.name != "advice.py"
        for found in advice(path.read_text())
    }
    - {"X"}
)


def wrong(line: str) -> str | None:
    """Return what is wrong with a command line, None if nothing is."""
    words = shlex.split(line)
    found = problem(words, main, click.Context(main, info_name="rsky-pipeline"))
    missing = next((need for path, need in _NEEDS.items()
                    if tuple(words[: len(path)]) == path and need not in words), None)  # fmt: skip
    return found or (f"it needs {missing}" if missing else None)


@pytest.mark.parametrize("line", ADVISED)
def test_an_advised_command_works(line: str) -> None:
    assert wrong(line) is None


def test_wrong_advice_is_noticed() -> None:
    assert len(ADVISED) > 25
    source = 'f"try `rsky-pipeline cursor reset {host}` or " "`rsky-pipeline db pear`"'
    assert [wrong(line) for line in advice(source)] == ["it needs --force", "no command pear"]


@pytest.mark.parametrize("line", ADVISED)
def test_a_command_for_a_configuration_works(line: str) -> None:
    advice_module.choose({"--config": Path("/a b.toml"), "--data-dir": "/d"}, {})
    text = complete(f"try `rsky-pipeline {line}`, or wait")
    (completed,) = _COMMAND.findall(text)
    assert completed.startswith(line.partition(" -- ")[0])
    assert ("--config '/a b.toml' --data-dir /d" in completed) == ("--help" not in line)
    assert wrong(completed) is None
    assert complete(text) == text


@pytest.mark.parametrize(
    ("given", "environ", "options"),
    [
        ({}, {}, []),
        ({"--config": Path("/etc/rsky-pipeline/rsky-pipeline.toml")}, {}, []),
        ({"--config": None}, {"RSKY_PIPELINE_CONFIG": "/x.toml"}, ["--config", "/x.toml"]),
        ({"--config": Path("/y.toml")}, {"RSKY_PIPELINE_CONFIG": "/x.toml"},
         ["--config", "/y.toml"]),
        ({"--config": Path("y.toml")}, {}, ["--config", str(Path("y.toml").absolute())]),
        ({"--run-dir": "/r", "--data-dir": "/d"}, {}, ["--data-dir", "/d", "--run-dir", "/r"]),
    ],
)  # fmt: skip
def test_the_options_that_choose_a_pipeline(
    given: dict[str, Path | str | None], environ: dict[str, str], options: list[str]
) -> None:
    advice_module.choose(given, environ)
    assert list(advice_module.options()) == options


def test_commands_of_no_pipeline_and_those_for_another_program_stay() -> None:
    advice_module.choose({"--run-dir": "/r"}, {})
    for line in ("completion install bash", "status --help", "stop --config=/other.toml"):
        assert complete(f"`rsky-pipeline {line}`") == f"`rsky-pipeline {line}`"
    shell = "`rsky-pipeline db shell --run-dir /r -- -c x`"
    assert complete("`rsky-pipeline db shell -- -c x`") == shell


def test_wherever_messages_leave_a_process_they_are_complete(
    capsys: pytest.CaptureFixture[str],
) -> None:
    advice_module.choose({"--config": "/x.toml"}, {})
    text, whole = "see `rsky-pipeline status`", "see `rsky-pipeline status --config /x.toml`"
    output.line(text)
    output.say(text)
    output.print_table(["A"], [[text]])
    output.print_json({"a": [text], "b": {"c": (text,)}})
    shown = capsys.readouterr()
    assert shown.out.count(whole) == 4
    assert whole in shown.err
    record = logging.makeLogRecord({"msg": text, "to_do": text})
    for formatter in (TextLines("", 1, False), JsonLines("", 1)):
        assert formatter.format(record).count(whole) == 2
    (finding,) = written([RuleVerdict(DATABASE, "", "fail", text, remedy=text)])
    assert (finding["figure"], finding["remedy"]) == (whole, whole)


def test_a_command_and_its_workers_know_their_configuration(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(f"data_dir = '{tmp_path}'\n")
    result = CliRunner().invoke(main, ["status", "--config", str(file)])
    assert f"`rsky-pipeline start --config {file}`" in result.stderr
    assert [*advice_module.options()] == ["--config", str(file)]
    result = CliRunner().invoke(main, ["status", "--data-dir", str(tmp_path)])
    assert f"`rsky-pipeline start --data-dir {tmp_path}`" in result.stderr


def test_words_are_quoted_for_a_shell() -> None:
    assert advised("cursor", "reset", "a b") == "`rsky-pipeline cursor reset 'a b'`"


def test_each_rule_says_what_to_do() -> None:
    """A log of a worker has a place; `status` and `verify` have none for 'see its log'."""
    for rule in RULES:
        assert rule.remedy
        assert rule.remedy not in {"see its log", "see the worker's log"}, rule.name
