"""What `--help` shows of each command, and what a shell completes."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from rsky_pipeline.cli import main
from rsky_pipeline.cli.completion import PROGRAM, SHELLS, VARIABLE
from rsky_pipeline.cli.examples import EXAMPLES
from rsky_pipeline.streams.names import STREAMS
from tests.unit.test_documented_commands import problem


def commands(
    group: click.Group = main, before: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    """Yield every visible command with its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, (*before, name))
        elif not found.hidden:
            yield " ".join((*before, name)), found


ALL = dict(commands())


def help_of(name: str, *more: str) -> str:
    return CliRunner().invoke(main, [*name.split(), *(more or ("--help",))]).stdout


@pytest.mark.parametrize("name", ALL)
def test_help_shows_what_the_command_uses_and_an_example(name: str) -> None:
    shown = help_of(name)
    example = EXAMPLES[name]
    assert " ".join(example.split()) in " ".join(shown.split())
    words = shlex.split(example)
    assert words[0] == "rsky-pipeline"
    assert words[1 : 1 + len(name.split())] == name.split()
    assert problem(words[1:], main, click.Context(main, info_name="rsky-pipeline")) is None
    options = shown.partition("Options:")[2].partition("Settings:")[0]
    assert "--relay-hosts" not in options
    assert "--config" not in options
    settings = any(each.name == "config_file" for each in ALL[name].params)
    assert ("--help-settings" in options) == settings
    if settings:
        assert "--log-format" in help_of(name, "--help-settings")


def test_every_example_is_of_a_command() -> None:
    assert set(EXAMPLES) == set(ALL)


def test_choices_are_shown_and_one_name_of_each_option() -> None:
    shown = help_of("status", "--help-settings")
    assert "--verify [none|signature|full]" in shown
    assert "--relay HOST" in shown
    assert "\n  --relay " not in shown
    assert "--count" not in help_of("dlq show")
    assert "[high|normal|low]" in help_of("backfill add")


@pytest.mark.parametrize(
    ("line", "meant"),
    [("statsu", "status"), ("db chek", "check"), ("streams groups repar", "repair")],
)
def test_a_mistyped_command_is_answered_with_the_nearest(line: str, meant: str) -> None:
    result = CliRunner().invoke(main, line.split())
    assert result.exit_code == 2
    assert f"Did you mean '{meant}'?" in result.stderr
    assert "Did you mean" not in CliRunner().invoke(main, ["zzzzzz"]).stderr


def completed(*words: str) -> set[str]:
    *before, last = words
    shell = ShellComplete(main, {}, PROGRAM, VARIABLE)
    return {each.value for each in shell.get_completions(list(before), last)}


def test_streams_settings_hosts_and_values_are_completed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert completed("sta") == {"status", "start"}
    assert completed("streams", "inspect", "firehose") == {
        each for each in STREAMS if each.startswith("firehose")
    }
    assert "firehose_raw_dlq" in completed("dlq", "show", "")
    assert completed("status", "--set", "log_l") == {"log_level="}
    assert "log_level=debug" in completed("status", "--set", "log_level=")
    assert completed("status", "--verify", "s") == {"signature"}
    assert completed("run", "--role", "ing") == {"ingester"}
    monkeypatch.setenv("RSKY_PIPELINE_RELAY_HOSTS", "relay.one.test,relay.two.test")
    assert completed("cursor", "reset", "relay.t") == {"relay.two.test"}


def install(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["completion", *arguments])


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_is_installed_where_the_shell_looks(
    shell: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    assert install("install").exit_code == 0
    (file,) = (each for each in tmp_path.rglob("*") if each.is_file())
    assert shell in str(file)
    assert f"{VARIABLE}={shell}_complete" in file.read_text()
    assert file.read_text() == install("show", shell).stdout
    monkeypatch.setenv("SHELL", "/bin/dash")
    assert install("install").exit_code == 2
