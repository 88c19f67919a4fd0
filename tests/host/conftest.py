"""Nothing here may be skipped: what a test lacks is a failure."""

from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a test fail that skips itself."""
    report = yield
    if report.skipped and item.get_closest_marker("host"):
        report.outcome = "failed"
        report.longrepr = f"did not run: {report.longrepr}"
    return report
