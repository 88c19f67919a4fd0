"""docs/architecture.md names files and functions that exist."""

import ast
import re
from pathlib import Path

import pytest

import rsky_pipeline

ROOT = Path(rsky_pipeline.__file__).parent
PAGE = ROOT.parent / "docs" / "architecture.md"
_PLACE = re.compile(r"`([a-z_/]+\.(?:py|lua))(?::([A-Za-z_.]+))?`((?:, `[A-Za-z_.]+`)*)")
_MORE = re.compile(r"`([A-Za-z_.]+)`")


def places() -> list[tuple[str, str | None]]:
    """Return the files of the page, each with a function or class, or None."""
    found: list[tuple[str, str | None]] = []
    for name, function, more in _PLACE.findall(PAGE.read_text()):
        found.append((name, function or None))
        if function:  # the names that follow are of the same file
            found += [(name, other) for other in _MORE.findall(more)]
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


def test_the_page_names_many_places() -> None:
    assert len(places()) > 60


@pytest.mark.parametrize(("name", "function"), sorted(set(places()), key=str))
def test_a_place_exists(name: str, function: str | None) -> None:
    file = next((path for path in (ROOT / name, ROOT.parent / name) if path.exists()), None)
    if file is None and "/" not in name:  # a file of a folder that the sentence has named
        file = next(ROOT.rglob(name), None)
    assert file is not None, f"{name} is no file of the package"
    if function is not None:
        assert function in defined(file)
