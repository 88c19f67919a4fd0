"""Where values come from, which one wins, and what a wrong one says."""

from pathlib import Path
from typing import Any

import pytest

from rsky_pipeline.configuration import sources
from rsky_pipeline.configuration.load import ConfigurationError, load
from rsky_pipeline.configuration.settings import Settings, declarations


def problems(
    environ: dict[str, str] | None = None,
    flags: dict[str, str] | None = None,
    toml: Path | None = None,
) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as error:
        load(toml, environ or {}, flags or {})
    return error.value.problems


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pipeline.toml"


def test_nothing_given_means_the_defaults() -> None:
    result = load(None, {}, {})
    assert result.settings == Settings()
    assert set(result.origins.values()) == {"default"}
    assert result.file is None


def test_flags_win_over_the_environment_over_the_file(file: Path) -> None:
    file.write_text('verify = "none"\nindexer_batch_size = 700\nrelay_hosts = ["a.test"]\n')
    environ = {
        "RSKY_PIPELINE_INDEXER_BATCH_SIZE": "800",
        "RSKY_PIPELINE_RELAY_HOSTS": "b.test,c.test",
    }
    result = load(file, environ, {"relay_hosts": "ws://127.0.0.1:99"})
    assert result.settings.indexer_batch_size == 800
    assert result.settings.relay_hosts == ("ws://127.0.0.1:99",)
    assert result.origins["verify"] == str(file)
    assert result.origins["indexer_batch_size"].endswith("RSKY_PIPELINE_INDEXER_BATCH_SIZE")
    assert result.origins["relay_hosts"] == "flag --relay-hosts"


def test_every_setting_can_be_set_in_the_file_and_in_the_environment(file: Path) -> None:
    examples: dict[str, Any] = {
        "binary_path": "/opt/rsky-pipeline",
        "plc_url": "http://localhost:2582",
        "redis_url": "redis://h",
        "database_url": "postgresql://h/d",
        "metrics_host": "::1",
        "initial_cursor": "oldest",
        "log_level": "debug",
        "log_format": "json",
        "verify": "signature",
        "label_signatures": "check",
        "enumeration_source": "both",
        "expected_roles": "indexer",
        "validation": "strict",
        "ingester_workers": 1,
    }
    needed = {"seen_port": "SEEN_TOKEN", "bsync_url": "BSYNC_KEY"}
    for name in declarations():
        given = {f"RSKY_PIPELINE_{needed[name]}": "t"} if name in needed else {}
        default = getattr(Settings(), name)
        value = examples.get(name)
        if value is None and isinstance(default, bool):
            value = not default
        elif value is None and isinstance(default, int):
            value = default + 20
        elif value is None and isinstance(default, tuple):
            value = "some.test.name"
        value = "other" if value is None else value
        file.write_text(f"{name} = {str(value).lower() if isinstance(value, int) else repr(value)}")
        from_file = getattr(load(file, given, {}).settings, name)
        variable = f"RSKY_PIPELINE_{name.upper()}"
        from_environment = getattr(load(None, given | {variable: str(value)}, {}).settings, name)
        assert from_file == from_environment
        assert from_file != default or name == "ingester_workers"
        assert type(from_file) is type(default) or default is None or name == "initial_cursor"


def test_an_empty_variable_sets_nothing() -> None:
    result = load(None, {"RSKY_PIPELINE_REDIS_URL": "", "REDIS_URL": "redis://h"}, {})
    assert result.settings.redis_url == "redis://h"


def test_names_of_the_original_services_work_and_ours_win() -> None:
    environ = {
        "INGESTER_RELAY_HOSTS": "relay.test, relay.two",
        "REDIS_URL": "redis://h:1",
        "DATABASE_URL": "postgres://h/db",
        "INGESTER_LABELER_HOSTS": "mod.test",
        "PLC_URL": "http://localhost:2582",
        "INGESTER_HIGH_WATER_MARK": "5000",
        "RSKY_PIPELINE_REDIS_URL": "redis://ours:2",
        "BACKFILLER_METRICS_PORT": "4010",
    }
    settings = load(None, environ, {}).settings
    assert settings.relay_hosts == ("relay.test", "relay.two")
    assert settings.redis_url == "redis://ours:2"
    assert settings.database_url == "postgres://h/db"
    assert settings.labeler_hosts == ("mod.test",)
    assert settings.plc_url == "http://localhost:2582"
    assert (settings.live_high_water_mark, settings.repo_high_water_mark) == (5000, 5000)
    assert settings.backfiller_metrics_port == 4010


def test_one_mark_for_a_stream_wins_over_the_one_for_all() -> None:
    environ = {
        "INGESTER_HIGH_WATER_MARK": "5000",
        "INGESTER_REPO_STREAM_HIGH_WATER_MARK": "6000",
    }
    settings = load(None, environ, {}).settings
    assert (settings.live_high_water_mark, settings.repo_high_water_mark) == (5000, 6000)


def test_original_variables_without_effect_are_told() -> None:
    environ = {
        "INDEXER_MODE": "stream",
        "METRICS_PORT": "4100",
        "INDEXER_STREAMS": "firehose_live, firehose_backfill",
        "INGESTER_FIREHOSE_STREAM": "my_stream",
    }
    remarks = load(None, environ, {}).remarks
    names = [remark.split()[0] for remark in remarks]
    assert names == ["INDEXER_MODE", "METRICS_PORT", "INGESTER_FIREHOSE_STREAM"]
    assert "firehose_live" in remarks[-1]


@pytest.mark.parametrize("cursor", ["live", "oldest", "0", "31527015322"])
def test_initial_cursors(cursor: str) -> None:
    value = load(None, {}, {"initial_cursor": cursor}).settings.initial_cursor
    assert value == (int(cursor) if cursor.isdigit() else cursor)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("indexer_batch_size", "0", "1 to 20000 events"),
        ("indexer_batch_size", "many", "whole number"),
        ("indexer_batch_size", "1e3", "whole number"),
        ("indexer_batch_size", "٣", "whole number"),
        ("live_high_water_mark", "9" * 40, "whole number"),
        ("verify", "partly", "none, signature, full"),
        ("initial_cursor", "newest", "live, oldest"),
        ("initial_cursor", "-1", "live, oldest"),
        ("initial_cursor", "9" * 30, "live, oldest"),
        ("relay_hosts", "ftp://relay.test", "ws://"),
        ("relay_hosts", "relay.test/path", "without a path"),
        ("relay_hosts", "relay.test:99999", "port"),
        ("relay_hosts", "a.test,a.test", "twice"),
        ("relay_hosts", ",", "at least one"),
        ("relay_hosts", "a.test,wss://A.test:443", "same host"),
        ("labeler_hosts", "a.test,https://a.test", "same host"),
        ("redis_url", "http://h", "redis"),
        ("database_url", "mysql://h", "postgresql"),
        ("database_schema", "a; DROP", "letters"),
        ("database_schema", "rsky_pipeline", "not rsky_pipeline"),
        ("collections", "app", "prefix"),
        ("collections", "app.bsky", "prefix"),
        ("collections", "*", "prefix"),
        ("collections", "app.bsky.,site.standard", "prefix"),
        ("collections", "site.standard.*", "prefix"),
        ("collections", "site.standard.my-document", "prefix"),
        ("collections", "site.standard.1st", "prefix"),
        ("collections", "1st.standard.document", "prefix"),
        ("collections", "site..document", "prefix"),
        ("collections", "site.standard.document/1", "prefix"),
        ("collections", "site." + "a." * 160, "prefix"),
        ("enumerate_repos", "maybe", "true and false"),
        ("metrics_host", "127.0.0.1:9090", "without a port"),
        ("data_dir", "~nobody-has-this-name/x", "directory"),
        ("data_dir", "a\nb", "control characters"),
        ("indexer_group", "a b", "letters"),
        ("log_level", "loud", "debug, info"),
        ("ingester_workers", "2", "1 to 1"),
        ("indexer_metrics_port", "9090", "same port"),
        ("supervisor_metrics_port", "9091", "same port"),
        ("embedded_database_port", "9092", "same port"),
        ("seen_port", "4000", "seen_token has to be set"),
        ("bsync_url", "http://bsync.test", "bsync_key has to be set"),
        ("seen_host", "127.0.0.1:9090", "without a port"),
        ("backfiller_retry_max_ms", "5", "or more"),
        ("live_high_water_mark", "499", "ingester_batch_size (500, default) or more"),
    ],
)
def test_a_wrong_value_says_key_value_origin_and_what_is_allowed(
    name: str, value: str, allowed: str
) -> None:
    (line,) = problems(flags={name: value})
    assert line.startswith(f"{name} = ")
    assert value.encode("unicode_escape").decode()[:30] in line or value in line
    assert f"--{name.replace('_', '-')}" in line
    assert allowed in line
    assert "\n" not in line
    (line,) = problems({f"RSKY_PIPELINE_{name.upper()}": value})
    assert f"RSKY_PIPELINE_{name.upper()}" in line


def test_ports_of_zero_do_not_collide() -> None:
    flags = dict.fromkeys(("ingester_metrics_port", "indexer_metrics_port"), "0")
    assert load(None, {}, flags).settings.ingester_metrics_port == 0


def test_a_search_path_in_the_url_must_be_the_schema() -> None:
    url = "postgresql://h/d?options=-csearch_path%3Dappview"
    (line,) = problems({"DATABASE_URL": url})
    assert "set database_schema to appview" in line
    result = load(None, {"DATABASE_URL": url}, {"database_schema": "appview"})
    assert result.settings.database_url == url


def test_all_problems_are_told_at_once() -> None:
    found = problems({"RSKY_PIPELINE_VERIFI": "x"}, {"verify": "y", "indexer_batch_size": "z"})
    assert len(found) == 3
    assert "did you mean RSKY_PIPELINE_VERIFY?" in found[0]


def test_a_wrong_value_is_told_even_where_another_wins() -> None:
    (line,) = problems({"RSKY_PIPELINE_VERIFY": "maybe"}, {"verify": "none"})
    assert "RSKY_PIPELINE_VERIFY" in line


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("verify = ", "is not TOML"),
        ('verifi = "none"', "did you mean verify?"),
        ("[indexer]\nbatch_size = 1", "without tables"),
        ("relay_hosts = [1]", "list of texts"),
        ("indexer_batch_size = 1.5", "whole number"),
        ("indexer_batch_size = true", "whole number"),
        ("verify = false", "text that is not empty"),
        ("a = " + "[" * 5_000, "is not TOML"),
        ("# " + "x" * 1_000_001, "larger than"),
    ],
)
def test_problems_in_the_file_name_the_file(file: Path, text: str, problem: str) -> None:
    file.write_text(text)
    (line,) = problems(toml=file)
    assert str(file) in line
    assert problem in line


def test_a_file_that_cannot_be_read_says_who_named_it(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert "--config" in problems(toml=missing)[0]
    assert "RSKY_PIPELINE_CONFIG" in problems({"RSKY_PIPELINE_CONFIG": str(missing)})[0]
    assert "directory" in problems(toml=tmp_path)[0].lower()
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "is not TOML" in problems(toml=tmp_path / "binary.toml")[0]


def test_the_first_file_that_is_there_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    monkeypatch.setattr(sources, "DEFAULT_FILES", (first, second))
    second.write_text('verify = "signature"')
    assert load(None, {}, {}).origins["verify"] == str(second)
    first.write_text('verify = "none"')
    assert load(None, {}, {}).origins["verify"] == str(first)
    named = tmp_path / "named.toml"
    named.write_text('verify = "signature"')
    environ = {"RSKY_PIPELINE_CONFIG": str(named)}
    assert load(None, environ, {}).origins["verify"] == str(named)
    assert load(first, environ, {}).origins["verify"] == str(first)


def test_a_default_place_that_may_not_be_looked_at_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "private" / "pipeline.toml"
    monkeypatch.setattr(sources, "DEFAULT_FILES", (tmp_path / "none.toml", place))

    def refuse(path: Path, **_: Any) -> Any:
        if path == place:
            raise PermissionError(13, "Permission denied", str(path))
        raise FileNotFoundError

    monkeypatch.setattr(Path, "stat", refuse)
    (line,) = problems()
    assert line.startswith(f"{place}: cannot be read: Permission denied; run this as")
    assert load(Path("/dev/null"), {}, {}).file is not None


SECRET = "postgresql://u:geheim@h/d"


def test_secrets_are_read_from_files(file: Path, tmp_path: Path) -> None:
    held = tmp_path / "secret"
    held.write_text(f"{SECRET}\n")
    file.write_text(f'database_url_file = "{held}"')
    result = load(file, {}, {})
    assert result.settings.database_url == SECRET
    assert result.origins["database_url"] == f"{file} (file {held})"
    for variable in ("RSKY_PIPELINE_DATABASE_URL_FILE", "DATABASE_URL_FILE"):
        result = load(None, {variable: str(held)}, {})
        assert result.settings.database_url == SECRET
        assert variable in result.origins["database_url"]
    assert load(None, {}, {"database_url_file": str(held)}).settings.database_url == SECRET
    environ = {"RSKY_PIPELINE_DATABASE_URL": "postgresql://h/other"}
    assert load(file, environ, {}).settings.database_url == "postgresql://h/other"


def test_systemd_hands_secrets_over(file: Path, tmp_path: Path) -> None:
    (tmp_path / "redis_url").write_text("redis://:geheim@h")
    (tmp_path / "unrelated").write_text("x")
    file.write_text('redis_url = "redis://file"')
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    result = load(file, environ, {})
    assert result.settings.redis_url == "redis://:geheim@h"
    assert result.origins["redis_url"] == "systemd credential redis_url"
    assert load(file, environ | {"REDIS_URL": "redis://e"}, {}).settings.redis_url == "redis://e"


def test_a_file_of_a_secret_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    missing, empty, odd = (tmp_path / name for name in ("missing", "empty", "odd"))
    empty.write_text("\n")
    odd.write_bytes(b"\xff\xfe")
    for path, why in ((missing, "No such file"), (empty, "is empty"), (odd, "not UTF-8")):
        (line,) = problems({"REDIS_URL_FILE": str(path)})
        assert line.startswith(f"{path} (from environment variable REDIS_URL_FILE): ")
        assert why in line
    both = {"REDIS_URL": "redis://h", "REDIS_URL_FILE": str(empty)}
    assert "give one of them" in problems(both)[0]
    held = tmp_path / "held"
    held.write_text("redis://:geheim@h?decode_responses=true")
    (line,) = problems({"REDIS_URL_FILE": str(held)})
    assert "geheim" not in line
    (line,) = problems({}, {"verify_file": str(held)})  # no secret
    assert "there is no setting verify_file" in line


ENVIRONMENT_FILE = r"""
# a comment with = and a "quote
; another
PLAIN=redis://u:p@h:6379/0?a=1&b=$HOME
 SPACED =  in the middle   \t
SINGLE='a \ b "c" $d' # no comment
DOUBLE="a \" b \$c \n 'd'"
TWO_LINES="first
second"
JOINED=one\
two
ESCAPED=a\ b\
JOINED_QUOTES="a"'b'
INNER=it's "here"
EMPTY=
nothing here

export TWO_QUOTED="one
line" is another name
export = x
LAST=end"""


def test_an_environment_file_is_read_as_systemd_does() -> None:
    found, ignored = sources.parse_environment_file(ENVIRONMENT_FILE)
    lines = ENVIRONMENT_FILE.splitlines()
    assert [lines[number - 1] for number in ignored] == [
        "nothing here", 'export TWO_QUOTED="one',
    ]  # fmt: skip
    assert found == {
        "PLAIN": "redis://u:p@h:6379/0?a=1&b=$HOME",
        "SPACED": "in the middle   t",
        "SINGLE": 'a \\ b "c" $d# no comment',
        "DOUBLE": "a \" b $c \\n 'd'",
        "TWO_LINES": "first\nsecond",
        "JOINED": "onetwo",
        "ESCAPED": "a bJOINED_QUOTES=\"a\"'b'",
        "INNER": 'it\'s "here"',
        "EMPTY": "",
        "export": "x",
        "LAST": "end",
    }


@pytest.fixture
def units_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration of the units, and the file of their variables beside it."""
    monkeypatch.setattr(sources, "DEFAULT_FILES", (Path("none"), file))
    file.write_text('redis_url = "redis://file"\n')
    environment = file.with_name("environment")
    environment.write_text(
        "RSKY_PIPELINE_REDIS_URL=rediss://u:p@unit?ssl_check_hostname=false&db=1\n"
        "RSKY_PIPELINE_VERIFY=none\n"
    )
    return environment


def test_commands_read_the_variables_of_the_units(units_file: Path, file: Path) -> None:
    for given in (file, None):  # named, or found in its place
        result = load(given, {}, {})
        assert result.settings.redis_url == "rediss://u:p@unit?ssl_check_hostname=false&db=1"
        assert result.origins["redis_url"] == (
            f"environment variable RSKY_PIPELINE_REDIS_URL of {units_file}"
        )
        assert result.units_environment["RSKY_PIPELINE_VERIFY"] == "none"
    # Those of the command itself win, and so does what systemd has set within a unit.
    assert load(file, {"RSKY_PIPELINE_VERIFY": "full"}, {}).settings.verify == "full"
    inside = load(file, {"NOTIFY_SOCKET": "/run/systemd/notify"}, {})
    assert inside.settings.redis_url == "redis://file"
    other = file.with_name("other.toml")
    other.write_text("")
    assert load(other, {}, {}).settings.redis_url is None


@pytest.mark.parametrize("line", ["export RSKY_PIPELINE_VERIFY=none", "RSKY_PIPELINE_VERIFY none",
                                  "set -a", "RSKY-PIPELINE-VERIFY=none", "2X=1"])  # fmt: skip
def test_a_line_that_sets_nothing_for_the_units_is_a_problem(
    units_file: Path, file: Path, line: str
) -> None:
    """Settings of a shell, as `simulate` prints them, would silently be none."""
    units_file.write_text(f"# of ours\nRSKY_PIPELINE_REDIS_URL=redis://h\n\n{line}\n")
    [problem] = problems(toml=file)
    assert problem == (
        f"{units_file}: line 4 has no effect, as for systemd: write NAME=VALUE, without `export`"
    )
    load(file, {"NOTIFY_SOCKET": "/run/systemd/notify"}, {})  # a unit starts as ever


def test_variables_of_the_units_that_cannot_be_read_are_a_problem(
    units_file: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units_file.write_bytes(b"X=\xff\n")
    assert problems(toml=file)[0].startswith(f"{units_file}: cannot be read: it is not UTF-8")

    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    [problem] = problems(toml=file)
    assert problem.startswith(f"{units_file}: cannot be read: Permission denied; run this as")
    units_file.write_bytes(b"")
    assert load(file, {}, {}).settings.redis_url == "redis://file"
    units_file.unlink()
    assert load(file, {}, {}).settings.redis_url == "redis://file"
