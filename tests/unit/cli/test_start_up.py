"""The command line starts without loading a client."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = "{'trio', 'redis', 'psycopg', 'prometheus_client', 'h11', 'cbor2', 'rich'}"


def imports_of(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command, and exit with 0 if it imported no client and with a text otherwise."""
    code = (
        "import sys; from rsky_pipeline.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"heavy = {HEAVY} & {{name.partition('.')[0] for name in sys.modules}}\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("arguments", [["--help"], ["config", "--help"], ["config", "show"],
                                       ["streams", "list", "--help"]])  # fmt: skip
def test_help_and_config_import_no_client(arguments: list[str]) -> None:
    result = imports_of(*arguments)
    assert result.returncode == 0, result.stderr
    assert "simulate" in result.stdout or "show" in result.stdout or "relay_hosts" in result.stdout


def test_status_of_nothing_imports_no_client(tmp_path: Path) -> None:
    result = imports_of("status", "--set", f"data_dir={tmp_path}", "--set", f"run_dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    assert "no pipeline" in result.stderr
