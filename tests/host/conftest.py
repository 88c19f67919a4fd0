"""Nothing here may be skipped: what a test lacks is a failure."""

from collections.abc import Generator

import pytest

from tests.evidence import fail_where_skipped


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a test fail that skips itself."""
    report = yield
    return fail_where_skipped(report) if item.get_closest_marker("host") else report
