"""The command line starts without loading a client."""

import subprocess
import sys

import pytest

HEAVY = "{'trio', 'redis', 'psycopg', 'prometheus_client', 'httpcore', 'cbor2', 'rich'}"


@pytest.mark.parametrize("arguments", ["['--help']", "['config', '--help']", "['config', 'show']"])
def test_help_and_config_import_no_client(arguments: str) -> None:
    code = (
        "import sys; from rsky_pipeline.cli import main\n"
        f"try: main({arguments})\n"
        "except SystemExit: pass\n"
        f"heavy = {HEAVY} & {{name.partition('.')[0] for name in sys.modules}}\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "simulate" in result.stdout or "show" in result.stdout or "relay_hosts" in result.stdout
