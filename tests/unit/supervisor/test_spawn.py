"""A worker is of the same program as its supervisor, wherever that was started."""

import subprocess
from pathlib import Path

from rsky_pipeline.supervisor.spawn import WORKER_PROGRAM


def test_the_working_directory_does_not_hide_the_program(tmp_path: Path) -> None:
    (tmp_path / "rsky_pipeline").mkdir()
    (tmp_path / "rsky_pipeline" / "__init__.py").write_text("raise SystemExit('of elsewhere')")
    result = subprocess.run(
        [*WORKER_PROGRAM, "--help"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
