"""Secrets stay hidden, and the reference covers every setting."""

from pathlib import Path

import pytest

from rsky_pipeline.configuration import report
from rsky_pipeline.configuration.load import ConfigurationError, load
from rsky_pipeline.configuration.redaction import redacted, redacted_invalid
from rsky_pipeline.configuration.report import effective, reference_markdown
from rsky_pipeline.configuration.settings import Settings, declarations
from rsky_pipeline.configuration.topology import ROLE_NAMES


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:geheim@h/d", "postgresql://u:***@h/d"),
        ("redis://:geheim@h:1/0", "redis://:***@h:1/0"),
        ("postgresql://u:ge@heim@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:ge/geheim@h/d", "postgresql://u:***@h/d"),
        ("postgresql://h/d?password=geheim&x=1", "postgresql://h/d?password=***&x=1"),
        ("host=h password='ge heim' user=u", "host=h password=*** user=u"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
    ],
)
def test_passwords_are_hidden(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text", ["u:geheim@h", "redis//:geheim@h", "host=h pass=geheim", "u:geheim:h:1"]
)
def test_nothing_is_shown_of_what_might_hold_one(text: str) -> None:
    assert redacted_invalid(text) == "***"


@pytest.mark.parametrize("name", ["redis_url", "database_url"])
@pytest.mark.parametrize(
    "value", ["http://u:geheim@h", "u:geheim@h", "postgresql:/u:geheim@h", "x://u:geheim@h:9999999"]
)
def test_no_error_gives_a_password_away(name: str, value: str) -> None:
    for given in ({name.upper(): value}, {f"RSKY_PIPELINE_{name.upper()}": value}):
        with pytest.raises(ConfigurationError) as error:
            load(None, given, {name: value})
        assert "geheim" not in str(error.value)


@pytest.mark.parametrize("value", ["geheim", "ge heim", "gehéim"])
def test_a_token_is_shown_nowhere(value: str) -> None:
    shown = ""
    try:
        loaded = load(None, {}, {"seen_token": value})
        shown = repr(loaded.settings) + str(effective(loaded)["seen_token"])
    except ConfigurationError as error:
        shown = str(error)
    assert value not in shown


def test_the_report_hides_passwords_and_covers_every_setting() -> None:
    result = load(None, {"REDIS_URL": "redis://:geheim@h"}, {})
    report = effective(result)
    assert report["redis_url"] == {
        "value": "redis://:***@h",
        "origin": "environment variable REDIS_URL",
    }
    assert report.keys() == declarations().keys()


def test_settings_do_not_print_secrets() -> None:
    assert "geheim" not in repr(Settings(redis_url="redis://:geheim@h"))


def test_the_reference_has_a_line_for_each_setting() -> None:
    lines = reference_markdown().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(declarations())
    assert all(line.count("|") == 7 for line in lines)


def test_a_setting_of_one_role_is_used_by_no_other_role() -> None:
    """What `restart ROLE` applies follows from who reads a setting."""
    package = Path(report.__file__).parents[1]
    for name, info in declarations().items():
        for role in set(ROLE_NAMES) - set(info.roles or ROLE_NAMES):
            text = "".join(path.read_text() for path in (package / role).rglob("*.py"))
            assert f"settings.{name}" not in text, (name, role)
