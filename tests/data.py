"""Real recordings that are not part of the project: found by RSKY_TEST_DATA, or the test skips."""

import os
from pathlib import Path

import pytest


def test_data(relative: str) -> Path:
    """Return the path of a file or folder of the recordings, or skip the calling test."""
    folder = os.environ.get("RSKY_TEST_DATA")
    if not folder:
        pytest.skip("RSKY_TEST_DATA is not set: it names the folder of the recorded network data")
    path = Path(folder) / relative
    if not path.exists():
        pytest.skip(f"RSKY_TEST_DATA holds no {relative}")
    return path


test_data.__test__ = False  # type: ignore[attr-defined]  # not a test despite its name
