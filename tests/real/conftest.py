"""Scenarios against real servers: what ran, what was left out on purpose, and the tally."""

import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import pytest

from tests.evidence import fail_where_skipped
from tests.real.servers import Servers, servers

SKIP = "SKIP"  # names of scenarios, separated by commas


@dataclass(slots=True)
class Tally:
    """What happened in a scenario."""

    name: str
    events: int = 0
    kills: int = 0
    fail_overs: int = 0
    seconds: float = 0.0


_TALLIES = pytest.StashKey[list[Tally]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TALLIES] = []


@pytest.fixture(autouse=True)
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Count the events, kills and fail-overs of a scenario."""
    began, found = time.monotonic(), Tally(_name(request.node))
    request.config.stash[_TALLIES].append(found)
    yield found
    found.seconds = time.monotonic() - began


@pytest.fixture
def real() -> Iterator[Servers]:
    """Start servers that end with the test."""
    with servers() as found:
        yield found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what SKIP names. A program that is missing fails its scenario: see `servers.program`."""
    named = _left_out()
    here = [item for item in items if item.get_closest_marker("real")]
    unknown = named.difference(*map(_names, here))
    if unknown and here:
        raise pytest.UsageError(f"{SKIP} names no scenario: {', '.join(sorted(unknown))}")
    for item in here:
        if not named.isdisjoint(_names(item)):
            item.add_marker(pytest.mark.skip(reason=f"named in {SKIP}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a scenario fail that skips itself."""
    report = yield
    if item.get_closest_marker("real") and _left_out().isdisjoint(_names(item)):
        return fail_where_skipped(report, f"did not run, and is not named in {SKIP}")
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    done = config.stash[_TALLIES]
    if not done:
        return
    terminalreporter.section("scenarios on real servers")
    everything = Tally("together")
    for each in done:
        everything.events += each.events
        everything.kills += each.kills
        everything.fail_overs += each.fail_overs
        everything.seconds += each.seconds
    for each in [*done, everything]:
        terminalreporter.write_line(
            f"{each.events:9,} events {each.kills:3} kills {each.fail_overs:3} fail-overs "
            f"{each.seconds:5.0f} s  {each.name}"
        )
    left_out = ", ".join(sorted(_left_out())) or "none"
    terminalreporter.write_line(f"{len(done)} scenarios ran; left out by {SKIP}: {left_out}")


def _name(item: pytest.Item) -> str:
    return item.name.removeprefix("test_")


def _names(item: pytest.Item) -> set[str]:
    """Return the names by which a scenario is left out: its own, and without parameters."""
    return {_name(item), _name(item).partition("[")[0]}


def _left_out() -> set[str]:
    return {name for name in os.environ.get(SKIP, "").split(",") if name}
