"""A class name means one thing in the whole package, and exceptions are told by their names."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import rsky_pipeline

ROOT = Path(rsky_pipeline.__file__).parent


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    """Yield every class of the package, inner ones included."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield path.relative_to(ROOT), node


def exceptions() -> set[str]:
    """Return the names of all exceptions: what is made of one is one."""
    bases: dict[str, set[str]] = defaultdict(set)
    for _, node in classes():
        bases[node.name] |= {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    found: set[str] = set()
    while True:
        more = {
            name
            for name, parents in bases.items()
            if any(parent in found or parent.endswith(("Error", "Exception")) for parent in parents)
        }
        if more <= found:
            return found
        found |= more


def test_a_class_name_is_used_once() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path, node in classes():
        places[node.name].append(f"{path}:{node.lineno}")
    shared = {name: found for name, found in places.items() if len(found) > 1}
    assert shared == {}


def test_an_exception_ends_in_error() -> None:
    odd = {name for name in exceptions() if not name.endswith("Error")}
    assert odd == set()
    assert len(exceptions()) > 30
