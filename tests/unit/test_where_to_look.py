"""The pages for contributors name files, functions and tests that exist."""

import ast
import re
from pathlib import Path

import pytest

import rsky_pipeline

ROOT = Path(rsky_pipeline.__file__).parent
REPOSITORY = ROOT.parent
PAGES = ("architecture.md", "glossary.md", "gotchas.md", "invariants.md")
_PLACE = re.compile(r"`([a-z_/]+\.(?:py|pyx|lua|sql))(?::([A-Za-z_.]+))?`((?:, `[A-Za-z_.]+`)*)")
_MORE = re.compile(r"`([A-Za-z_.]+)`")
_TEST = re.compile(r"`(test_[a-z0-9_]+)`")
_TESTS = re.compile(r"`(tests/[a-z0-9_/*.]+)`")


def text_of(page: str) -> str:
    return (REPOSITORY / "docs" / page).read_text()


def places() -> set[tuple[str, str | None]]:
    """Return the files that the pages name, each with a function or class, or None."""
    found: set[tuple[str, str | None]] = set()
    for page in PAGES:
        for name, function, more in _PLACE.findall(text_of(page)):
            found.add((name, function or None))
            if function:  # the names that follow are of the same file
                found |= {(name, other) for other in _MORE.findall(more)}
    return found


def defined(path: Path) -> set[str]:
    """Return the names of functions, classes and methods, methods as `Class.method`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
            names |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
    return names


def test_the_pages_name_many_places() -> None:
    assert len(places()) > 100


@pytest.mark.parametrize(("name", "function"), sorted(places(), key=str))
def test_a_place_exists(name: str, function: str | None) -> None:
    file = next((path for path in (ROOT / name, REPOSITORY / name) if path.exists()), None)
    if file is None and "/" not in name:  # a file of a folder that the sentence has named
        file = next(iter([*ROOT.rglob(name), *(REPOSITORY / "tests").rglob(name)]), None)
    assert file is not None, f"{name} is no file of the package"
    if function is not None:
        assert function in defined(file)


def test_the_tests_that_guard_an_invariant_exist() -> None:
    text = text_of("invariants.md")
    written: set[str] = set()
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        written |= set(re.findall(r"def (test_\w+)", path.read_text()))
    named = set(_TEST.findall(text))
    assert len(named) > 60
    assert named - written == set()
    assert [name for name in _TESTS.findall(text) if not list(REPOSITORY.glob(name))] == []
