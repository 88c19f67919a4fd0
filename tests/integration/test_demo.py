"""The whole pipeline, as an operator sees it: all roles on a simulated network."""

import re
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_database_holds_exactly_what_was_published() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "rsky_pipeline", "demo", "--seconds", "10", "--rate", "150"],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = re.search(r"([\d,]+) differences in ([\d,]+) rows", result.stdout)
    assert found is not None
    differences, rows = (int(text.replace(",", "")) for text in found.groups())
    assert differences == 0
    assert rows > 3_000
    stopped = re.findall(r"(\w+) drained and stopped", result.stdout)
    assert stopped == ["indexer", "backfiller", "ingester"]
