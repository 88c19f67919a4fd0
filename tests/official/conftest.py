"""Nothing here may be skipped, and what was measured is shown and kept."""

import json
import os
import subprocess
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.evidence import fail_where_skipped
from tests.official.installation import RELEASES, Installation, installed
from tests.official.world import World, populated

RESULTS = "OFFICIAL"  # the file into which the figures are written
SEED = int(os.environ.get("OFFICIAL_SEED", "18"))
_FIGURES = pytest.StashKey[dict[str, Any]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FIGURES] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test with each release, or the one that RELEASE names."""
    if "installation" in metafunc.fixturenames:
        named = os.environ.get("RELEASE")
        releases = [named] if named else list(RELEASES)
        metafunc.parametrize("installation", releases, indirect=True, scope="session")


@pytest.fixture(scope="session")
def installation(request: pytest.FixtureRequest) -> Installation:
    """The packages of a release."""
    return installed(request.param)


@pytest.fixture(scope="session")
def world(installation: Installation, database_server: str) -> Iterator[World]:
    """A network of a release on which people have lived, and which both have followed."""
    with populated(installation, database_server, SEED) as found:
        yield found


@pytest.fixture
def figures(request: pytest.FixtureRequest, installation: Installation) -> dict[str, Any]:
    """What was measured with this release, for docs/appview-parity.md."""
    every: dict[str, Any] = request.config.stash[_FIGURES]
    of_release: dict[str, Any] = every.setdefault(installation.release, {})
    return of_release


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a test fail that skips itself."""
    report = yield
    return fail_where_skipped(report) if item.get_closest_marker("official") else report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show the figures, and write them into the file that OFFICIAL names."""
    found = config.stash[_FIGURES]
    if not found:
        return
    for release, figures in found.items():
        terminalreporter.section(f"beside the official AppView {release}")
        for name, value in figures.items():
            terminalreporter.write_line(f"{name}: {json.dumps(value, indent=1, sort_keys=True)}")
    if named := os.environ.get(RESULTS):
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        document = {"date": time.strftime("%Y-%m-%d"), "commit": commit, "releases": found}
        Path(named).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
