"""A worker is of the same program as its supervisor, wherever that was started."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from rsky_pipeline.operations.load import pool
from rsky_pipeline.supervisor.spawn import WORKER_PROGRAM


@pytest.mark.parametrize("program", [WORKER_PROGRAM, pool.PROGRAM])
def test_the_working_directory_does_not_hide_the_program(
    program: Sequence[str], tmp_path: Path
) -> None:
    (tmp_path / "rsky_pipeline").mkdir()
    (tmp_path / "rsky_pipeline" / "__init__.py").write_text("raise SystemExit('of elsewhere')")
    result = subprocess.run(
        [*program, "--help"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
