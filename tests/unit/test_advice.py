"""Commands that messages advise exist, with their options, and do not ask for another one."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import rsky_pipeline
from rsky_pipeline.cli import main
from rsky_pipeline.health.rules import RULES
from rsky_pipeline.runtime.findings import advised
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


# What is only a value is a command that is made, and checked, elsewhere.
ADVISED = sorted(
    {found for path in ROOT.rglob("*.py") for found in advice(path.read_text())} - {"X"}
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


def test_words_are_quoted_for_a_shell() -> None:
    assert advised("cursor", "reset", "a b") == "`rsky-pipeline cursor reset 'a b'`"


def test_each_rule_says_what_to_do() -> None:
    """A log of a worker has a place; `status` and `verify` have none for 'see its log'."""
    for rule in RULES:
        assert rule.remedy
        assert rule.remedy not in {"see its log", "see the worker's log"}, rule.name
