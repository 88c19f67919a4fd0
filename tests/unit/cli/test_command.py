"""What the frame of every command does: options, answers, errors and exit codes."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from rsky_pipeline.cli import COMMANDS, main
from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.database.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    TransactionConflictError,
)
from rsky_pipeline.runtime.errors import PermissionDeniedError
from rsky_pipeline.runtime.server_setting import ServerSetting
from rsky_pipeline.streams.errors import StoreRejectedError, StoreUnavailableError


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("REDIS_URL", "DATABASE_URL", "RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("url", ["", "postgresql://db/bsky"])
def test_settings_are_advised_for_a_server_of_ones_own(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ServerSetting("advice", "max_wal_size", "8192MB", "20GB or more", "why")
    monkeypatch.setattr("rsky_pipeline.database.schema.check", lambda *_, **__: [])
    monkeypatch.setattr("rsky_pipeline.database.schema.appview_release", lambda *_: None)
    monkeypatch.setattr("rsky_pipeline.database.server.advise", lambda _: [found])
    monkeypatch.setenv("DATABASE_URL", url)
    shown = CliRunner().invoke(main, ["db", "check", "--json"])
    assert len(json.loads(shown.stdout)["advice"]) == bool(url)


def ending(error: Exception | None, *arguments: str, code: int | None = None) -> Result:
    @operator_command(name="try")
    def command(run: Invocation) -> int | None:
        if error is not None:
            raise error
        run.answer({"schema": run.settings.database_schema}, lambda: click.echo("for people"))
        return code

    return CliRunner().invoke(command, arguments)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (StoreUnavailableError("gone"), 69, "redis://h:1: gone; check redis_url"),
        (StoreRejectedError("WRONGTYPE"), 1, "redis://h:1: WRONGTYPE"),
        (
            DatabaseUnavailableError("gone"),
            69,
            "PostgreSQL at postgresql://u:***@h/d cannot be used",
        ),
        (TransactionConflictError("lock"), 69, "something holds a lock for long"),
        (DatabaseError("odd\n thing"), 1, "PostgreSQL at postgresql://u:***@h/d: odd thing"),
        (PermissionDeniedError("no"), 77, "rsky-pipeline: no"),
        (CommandError("wrong", 2), 2, "rsky-pipeline: wrong"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error: Exception, code: int, words: str) -> None:
    stores = ("--redis-url", "redis://h:1", "--database-url", "postgresql://u:secret@h/d")
    for arguments in (stores, (*stores, "--json")):
        result = ending(error, *arguments)
        assert result.exit_code == code
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert words in line
        assert "secret" not in line


def test_an_embedded_database_that_does_not_run_is_named(tmp_path: Path) -> None:
    result = ending(DatabaseUnavailableError("no socket"), "--data-dir", str(tmp_path / "data"))
    assert result.exit_code == 69
    assert f"the embedded PostgreSQL in {tmp_path}/data does not run" in result.stderr


def test_an_embedded_redis_that_does_not_run_is_named(tmp_path: Path) -> None:
    result = ending(StoreUnavailableError("no socket"), "--data-dir", str(tmp_path / "data"))
    assert result.exit_code == 69
    assert f"the embedded Valkey in {tmp_path}/data does not run: start the" in result.stderr


def test_the_options_are_passed_on_to_a_command_that_is_started() -> None:
    @operator_command(name="try")
    @click.option("--own")
    def command(run: Invocation, own: str) -> None:
        assert own == "1"
        run.answer(run.given, lambda: None)

    arguments = ["--own=1", "--json", "--set", "verify=none", "--set", "log_level=info",
                 "--relay", "a.test", "--relay", "b.test", "--data-dir", "/tmp/x y"]  # fmt: skip
    result = CliRunner().invoke(command, arguments)
    assert sorted(json.loads(result.stdout)) == [
        "--data-dir=/tmp/x y", "--relay=a.test", "--relay=b.test", "--set=log_level=info",
        "--set=verify=none",
    ]  # fmt: skip


def test_other_errors_are_not_hidden() -> None:
    result = ending(ZeroDivisionError("a defect"))
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize("code", [None, 0, 6])
def test_the_answer_and_the_exit_code(code: int | None) -> None:
    result = ending(None, "--set", "database_schema=other", code=code)
    assert (result.exit_code, result.stdout) == (code or 0, "for people\n")
    result = ending(None, "--set", "database_schema=other", "--json", code=code)
    assert (result.exit_code, json.loads(result.stdout)) == (code or 0, {"schema": "other"})


def test_an_alias_is_the_same_command_and_not_listed() -> None:
    streams = main.get_command(click.Context(main), "streams")
    assert isinstance(streams, click.Group)
    release, alias = streams.commands["release"], streams.commands["hand-back"]
    assert release.callback is alias.callback
    assert [option.opts for option in release.params] == [option.opts for option in alias.params]
    assert (release.hidden, alias.hidden) == (False, True)


def test_each_command_stands_where_it_is_looked_for() -> None:
    context = click.Context(main)
    for name in COMMANDS:
        found = main.get_command(context, name)
        assert found is not None, name
        assert found.help, name
        if not isinstance(found, click.Group):
            assert found.name == name
