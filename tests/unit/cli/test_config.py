"""`config show` and `config check`: data on stdout, talk on stderr, exit code 2 if wrong."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rsky_pipeline.cli import main
from rsky_pipeline.configuration.settings import declarations


@pytest.fixture(autouse=True)
def no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a file in the working directory nor the caller's environment counts."""
    monkeypatch.chdir(tmp_path)
    for name, info in declarations().items():
        for variable in (f"RSKY_PIPELINE_{name.upper()}", *info.legacy_environment):
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("RSKY_PIPELINE_CONFIG", raising=False)


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environ)


def test_show_lists_every_setting_with_its_origin() -> None:
    Path("rsky-pipeline.toml").write_text("indexer_batch_size = 700")
    result = run("config", "show", "--verify", "signature", PLC_URL="http://localhost:1")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines()[1:]}
    assert list(lines) == list(declarations())
    assert "700" in lines["indexer_batch_size"]
    assert lines["indexer_batch_size"].endswith("/rsky-pipeline.toml")
    assert lines["verify"].endswith("flag --verify")
    assert lines["plc_url"].endswith("environment variable PLC_URL")
    assert lines["log_level"].endswith("default")


def test_show_as_json_is_one_document() -> None:
    result = run("config", "show", "--json", "--relay", "a.test", "--relay", "ws://b.test:1")
    document = json.loads(result.stdout)
    assert document["relay_hosts"] == {
        "value": ["a.test", "ws://b.test:1"],
        "origin": "flag --relay",
    }
    assert document["data_dir"]["value"] is None


def test_show_says_where_the_embedded_stores_listen(tmp_path: Path) -> None:
    lines = run("config", "show", "--data-dir", str(tmp_path)).stdout.splitlines()
    urls = {line.split()[0]: line for line in lines if line.split()[0].endswith("e_url")}
    assert "postgresql://postgres@/bsky?host=" in urls["database_url"]
    assert urls["database_url"].endswith("  embedded store")
    document = json.loads(run("config", "show", "--json", "--data-dir", str(tmp_path)).stdout)
    assert document["redis_url"]["value"] is None
    assert document["redis_url"]["embedded"].startswith("unix://")


@pytest.mark.parametrize("format", [[], ["--json"]])
def test_show_hides_passwords(format: list[str]) -> None:
    result = run("config", "show", *format, DATABASE_URL="postgresql://u:geheim@h/d")
    assert result.exit_code == 0
    assert "geheim" not in result.output
    assert "postgresql://u:***@h/d" in result.stdout


def test_check_says_what_has_no_effect() -> None:
    result = run("config", "check", INDEXER_MODE="label")
    assert result.exit_code == 0
    assert "good" in result.stdout
    assert result.stderr.startswith("rsky-pipeline: remark: INDEXER_MODE has no effect")
    result = run("config", "check", "--json", INDEXER_MODE="label")
    document = json.loads(result.stdout)
    assert (document["ok"], document["problems"], len(document["remarks"])) == (True, [], 1)


def test_check_names_stores_that_it_could_not_try() -> None:
    url = "postgresql://127.0.0.1:1/bsky"
    result = run("config", "check", REDIS_URL="redis://127.0.0.1:1", DATABASE_URL=url)
    assert result.exit_code == 0
    assert "good, but redis_url and database_url could not be tried (read: " in result.stdout


@pytest.mark.parametrize("name", ["file/below", "file", "nowhere/below", "n" * 300])
def test_check_names_a_data_dir_that_cannot_be_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    result = run("config", "check", "--data-dir", str(tmp_path / name))
    assert result.exit_code == 2
    assert f"data_dir: {tmp_path / name} cannot be made: " in result.stderr
    good = run("config", "check", "--data-dir", str(tmp_path / "a" / "b"))
    assert good.exit_code == 0, good.output
    assert not (tmp_path / "a").exists()
    stores = ("--redis-url", "redis://127.0.0.1:1", "--database-url", "postgresql://127.0.0.1:1/d")
    own = run("config", "check", "--data-dir", str(tmp_path / name), *stores,
              "--set", f"run_dir={tmp_path}/run")  # fmt: skip
    assert own.exit_code == 0, "nothing has to be written there"


def test_each_problem_is_a_line_and_the_exit_code_is_2() -> None:
    result = run(
        "config", "check", "--verify", "partly", "--set", "indexer-batch-size=0",
        RSKY_PIPELINE_REDIS_UR="x",
    )  # fmt: skip
    assert result.exit_code == 2
    assert result.stdout == ""
    unknown, verify, size = result.stderr.splitlines()
    assert "RSKY_PIPELINE_REDIS_UR: there is no such setting" in unknown
    assert "did you mean RSKY_PIPELINE_REDIS_URL?" in unknown
    assert verify == (
        "rsky-pipeline: verify = 'partly' (from flag --verify): allowed are none, signature, full"
    )
    assert size == (
        "rsky-pipeline: indexer_batch_size = '0' (from flag --set indexer_batch_size): "
        "allowed is a whole number, 1 to 20000 events"
    )


def test_problems_as_json() -> None:
    result = run("config", "check", "--json", "--verify", "maybe")
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert document["ok"] is False
    assert len(document["problems"]) == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--relay", "a.test", "--relay-hosts", "b.test"], "both set it"),
        (["--verify", "none", "--set", "verify=none"], "both set it"),
        (["--set", "geheim"], "NAME=VALUE"),
        (["--set", "no_such=1"], "no setting no_such"),
        (["--config", "missing.toml"], "cannot be read"),
    ],
)
def test_contradicting_flags(arguments: list[str], problem: str) -> None:
    result = run("config", "show", *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert problem in line
    assert "geheim" not in line


def test_an_unknown_option_is_exit_code_2() -> None:
    result = run("config", "show", "--no-such")
    assert result.exit_code == 2
    assert "--no-such" in result.stderr
