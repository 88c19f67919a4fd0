"""What configures a pipeline in the shell does not reach the tests."""

import os
import subprocess
import sys


def test_settings_of_the_shell_are_not_seen() -> None:
    shell = {
        **os.environ,
        "RSKY_PIPELINE_RUN_DIR": "/run/rsky-pipeline",
        "REDIS_URL": "redis://production",
    }
    code = (
        "import os, tests.conftest; print([n for n in os.environ if n[:6] in ('REDIS_', 'RSKY_P')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=shell, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
