"""Keeps what shows why a test failed: the logs of the workers and stores that it ran.

Scratch folders are gone when a test has ended. Their logs are copied before, into FAILED/TEST, when
an exception leaves the block that has the folder, or when the report of a failed test is made while
a fixture still has it. The ends of the logs are in the report.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

FAILED = Path(__file__).parents[1] / ".pytest_cache" / "failed-tests"
TAIL_BYTES = 6_000  # of each log, in the report
_MOST_BYTES = 50_000_000
_LOGS = re.compile(r".*\.log(\.1)?|log-\d+\.txt|trace\.txt|behaviour\.json")

_watched: list[Path] = []
_kept: list[Path] = []


@contextlib.contextmanager
def kept_if_failed(folder: Path) -> Iterator[None]:
    """Keep the logs in a folder if the block, or a test that runs meanwhile, fails."""
    _watched.append(folder)
    try:
        yield
    except BaseException:
        _keep(folder)
        raise
    finally:
        _watched.remove(folder)


def sections() -> list[tuple[str, str]]:
    """Return the end of each log of the test that has failed, by where it is kept."""
    for folder in _watched:
        _keep(folder)
    kept = list(dict.fromkeys(_kept))
    _kept.clear()
    return [(f"kept: {path}", _end_of(path)) for path in kept]


def forget() -> None:
    """Remove what was kept of a test that has passed: an exception was part of it."""
    for path in _kept:
        path.unlink(missing_ok=True)
    _kept.clear()


def _keep(folder: Path) -> None:
    test = os.environ.get("PYTEST_CURRENT_TEST", "no-test").rpartition(" ")[0]
    target = FAILED / re.sub(r"[^A-Za-z0-9._-]+", "-", test)[-150:]
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError):  # it may be removed while we look
            if _LOGS.fullmatch(path.name) and path.is_file() and path.stat().st_size < _MOST_BYTES:
                copy = target / folder.name / path.relative_to(folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
                _kept.append(copy)


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")


def fail_where_skipped(
    report: pytest.TestReport, because: str = "did not run"
) -> pytest.TestReport:
    """Let a test fail that skips itself: what it lacks is missing in a proof."""
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{because}: {report.longrepr}"
    return report
