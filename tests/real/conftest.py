"""Scenarios against real servers: what ran, what was left out on purpose, and the tally."""

import os
from dataclasses import dataclass, field

import pytest

SKIP = "SKIP"  # names of scenarios, separated by commas


@dataclass(slots=True)
class Tally:
    """What the scenarios of this run did."""

    scenarios: list[str] = field(default_factory=list)
    events: int = 0
    kills: int = 0
    fail_overs: int = 0


_TALLY = pytest.StashKey[Tally]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TALLY] = Tally()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Count the events, kills and fail-overs of a scenario."""
    found = request.config.stash[_TALLY]
    found.scenarios.append(request.node.name)
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what SKIP names. A program that is missing fails its scenario: see `servers.program`."""
    named = {name for name in os.environ.get(SKIP, "").split(",") if name}
    here = [item for item in items if item.get_closest_marker("real")]
    unknown = named - {item.name.removeprefix("test_") for item in here}
    if unknown and here:
        raise pytest.UsageError(f"{SKIP} names no scenario: {', '.join(sorted(unknown))}")
    for item in here:
        if item.name.removeprefix("test_") in named:
            item.add_marker(pytest.mark.skip(reason=f"named in {SKIP}"))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    done = config.stash[_TALLY]
    if done.scenarios:
        terminalreporter.write_line(
            f"{len(done.scenarios)} scenarios on real servers: {done.events:,} events, "
            f"{done.kills} kills, {done.fail_overs} fail-overs"
        )
