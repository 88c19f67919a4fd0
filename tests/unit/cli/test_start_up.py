"""The command line starts fast and speaks plainly."""

import subprocess
import sys


def run(
    *arguments: str, environ: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "rsky_pipeline", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", **(environ or {})},
    )


def test_help_imports_no_client() -> None:
    code = (
        "import sys; from rsky_pipeline.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'trio', 'redis', 'psycopg', 'prometheus_client', 'httpx'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "simulate" in result.stdout


def test_a_wrong_setting_is_one_line_and_exit_code_2() -> None:
    result = run("config", "check", "--verify", "maybe")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "rsky-pipeline: verify = 'maybe' (from flag --verify): allowed are none, signature"
    ]


def test_an_unknown_variable_is_an_error() -> None:
    result = run("config", "show", environ={"RSKY_PIPELINE_REDIS_UR": "x"})
    assert result.returncode == 2
    assert "did you mean RSKY_PIPELINE_REDIS_URL?" in result.stderr


def test_show_hides_passwords() -> None:
    result = run("config", "show", environ={"DATABASE_URL": "postgresql://u:geheim@h/d"})
    assert result.returncode == 0
    assert "geheim" not in result.stdout
    assert "environment variable DATABASE_URL" in result.stdout
