"""Of a failed test the logs are kept, and their ends shown."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TEST = """
from tests.stores import scratch_directory

def test_fails():
    with scratch_directory() as folder:
        (folder / "data").mkdir()
        (folder / "data" / "worker.log").write_text("what went wrong")
        (folder / "data" / "rows").write_text("not a log")
        assert False

def test_fails_inside_and_passes():
    try:
        with scratch_directory() as folder:
            (folder / "other.log").write_text("nothing went wrong")
            raise ValueError
    except ValueError:
        pass
"""


def test_the_logs_of_a_failed_test_are_kept(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tests.evidence.FAILED", tmp_path)
    pytester.makeconftest("from tests.conftest import pytest_runtest_makereport")
    pytester.makepyfile(TEST)
    result = pytester.runpytest_inprocess("-p", "no:randomly", "-p", "no:cacheprovider")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*kept: *worker.log*", "what went wrong"])
    result.stdout.no_fnmatch_line("*nothing went wrong*")
    assert [path.read_text() for path in tmp_path.rglob("worker.log")] == ["what went wrong"]
    assert not list(tmp_path.rglob("rows"))
    assert not list(tmp_path.rglob("other.log"))
