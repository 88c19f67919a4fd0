"""Where values come from, which one wins, and what a wrong one says."""

from pathlib import Path

import pytest

from rsky_pipeline.configuration.load import ConfigurationError, load
from rsky_pipeline.configuration.redaction import redacted
from rsky_pipeline.configuration.report import effective, reference_markdown
from rsky_pipeline.configuration.settings import Settings, declarations
from rsky_pipeline.configuration.topology import RoleDeclaration, start_order, stop_order


def problems(
    environ: dict[str, str] | None = None,
    flags: dict[str, str] | None = None,
    toml: Path | None = None,
) -> list[str]:
    with pytest.raises(ConfigurationError) as error:
        load(toml, environ or {}, flags or {})
    return error.value.problems


def test_nothing_given_means_the_defaults() -> None:
    result = load(None, {}, {})
    assert result.settings == Settings()
    assert set(result.origins.values()) == {"default"}


def test_flags_win_over_the_environment_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('verify = "none"\nindexer_batch_size = 7\nrelay_hosts = ["a.test"]\n')
    environ = {
        "RSKY_PIPELINE_INDEXER_BATCH_SIZE": "8",
        "RSKY_PIPELINE_RELAY_HOSTS": "b.test,c.test",
    }
    result = load(path, environ, {"relay_hosts": "ws://127.0.0.1:99"})
    assert result.settings.indexer_batch_size == 8
    assert result.settings.relay_hosts == ("ws://127.0.0.1:99",)
    assert result.origins["verify"] == str(path)
    assert result.origins["indexer_batch_size"].endswith("RSKY_PIPELINE_INDEXER_BATCH_SIZE")
    assert result.origins["relay_hosts"] == "flag --relay-hosts"


def test_names_of_the_original_services_work_and_ours_win() -> None:
    environ = {
        "INGESTER_RELAY_HOSTS": "relay.test",
        "REDIS_URL": "redis://h:1",
        "DATABASE_URL": "postgres://h/db",
        "INGESTER_LABELER_HOSTS": "mod.test",
        "PLC_URL": "http://localhost:2582",
        "INGESTER_HIGH_WATER_MARK": "5000",
        "RSKY_PIPELINE_REDIS_URL": "redis://ours:2",
        "INDEXER_MODE": "stream",
    }
    result = load(None, environ, {})
    settings = result.settings
    assert settings.relay_hosts == ("relay.test",)
    assert settings.redis_url == "redis://ours:2"
    assert settings.database_url == "postgres://h/db"
    assert settings.labeler_hosts == ("mod.test",)
    assert settings.plc_url == "http://localhost:2582"
    assert (settings.live_high_water_mark, settings.repo_high_water_mark) == (5000, 5000)
    assert [remark.split()[0] for remark in result.remarks] == ["INDEXER_MODE"]


@pytest.mark.parametrize("cursor", ["live", "oldest", "0", "31527015322"])
def test_initial_cursors(cursor: str) -> None:
    value = load(None, {}, {"initial_cursor": cursor}).settings.initial_cursor
    assert value == (int(cursor) if cursor.isdigit() else cursor)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("indexer_batch_size", "0", "1 to 20000 events"),
        ("indexer_batch_size", "many", "whole number"),
        ("verify", "full", "none, signature"),
        ("initial_cursor", "newest", "live, oldest"),
        ("relay_hosts", "", "at least one"),
        ("relay_hosts", "ftp://relay.test", "ws://"),
        ("relay_hosts", "relay.test/path", "without a path"),
        ("relay_hosts", "relay.test:99999", "port"),
        ("relay_hosts", "a.test,a.test", "twice"),
        ("redis_url", "http://h", "redis"),
        ("database_url", "mysql://h", "postgresql"),
        ("database_schema", "a; DROP", "letters"),
        ("collections", "app", "prefix"),
        ("enumerate_repos", "maybe", "true and false"),
        ("indexer_metrics_port", "9090", "same port"),
        ("backfiller_retry_max_ms", "5", "or more"),
    ],
)
def test_a_wrong_value_says_key_value_origin_and_what_is_allowed(
    name: str, value: str, allowed: str
) -> None:
    (line,) = problems({f"RSKY_PIPELINE_{name.upper()}": value} if value else {}, {name: value})[:1]
    assert line.startswith(f"{name} = ")
    assert value in line
    assert f"--{name.replace('_', '-')}" in line or "RSKY_PIPELINE" in line
    assert allowed in line


def test_all_problems_are_told_at_once() -> None:
    found = problems({"RSKY_PIPELINE_VERIFI": "x"}, {"verify": "y", "indexer_batch_size": "z"})
    assert len(found) == 3
    assert "did you mean RSKY_PIPELINE_VERIFY?" in found[0]


def test_a_wrong_url_does_not_give_its_password_away() -> None:
    (line,) = problems({"REDIS_URL": "http://user:secret@h"})
    assert "secret" not in line
    assert redacted("postgresql://u:p@h/d?password=x&y=1") == (
        "postgresql://u:***@h/d?password=***&y=1"
    )


def test_problems_with_the_file(tmp_path: Path) -> None:
    assert "cannot be read" in problems(toml=tmp_path / "missing.toml")[0]
    path = tmp_path / "c.toml"
    path.write_text("verify = ")
    assert "is not TOML" in problems(toml=path)[0]
    path.write_text('verifi = "none"')
    assert "did you mean verify?" in problems(toml=path)[0]


def test_the_report_redacts_and_covers_everything() -> None:
    report = effective(load(None, {"REDIS_URL": "redis://:secret@h"}, {}))
    assert report["redis_url"]["value"] == "redis://:***@h"
    assert report.keys() == declarations().keys()
    assert all(f"`{name}`" in reference_markdown() for name in declarations())


def test_orders_follow_from_the_data_flow() -> None:
    assert start_order() == ("ingester", "backfiller", "indexer")
    assert stop_order() == ("indexer", "backfiller", "ingester")
    circle = (RoleDeclaration("a", ("x",), ("y",)), RoleDeclaration("b", ("y",), ("x",)))
    with pytest.raises(ValueError, match="circle"):
        start_order(circle)
