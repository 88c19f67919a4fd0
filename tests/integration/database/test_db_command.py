"""`rsky-pipeline db`: steps and differences for people and for scripts."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rsky_pipeline.cli import main
from rsky_pipeline.cli.run import _prepare_database
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime.errors import PermissionDeniedError, SettingError
from tests.stores import execute, other_database, scratch_directory


def run(*arguments: str, url: str | None = None) -> Result:
    flags = [] if url is None else ["--database-url", url]
    unset = dict.fromkeys(("DATABASE_URL", "DB_POSTGRES_URL", "RSKY_PIPELINE_DATABASE_URL"))
    return CliRunner().invoke(main, ["db", *arguments, *flags], env=unset)


def test_init_reports_each_step_once(clean_database: str) -> None:
    result = run("init", url=clean_database)
    assert result.exit_code == 0
    assert "created the AppView's tables in bsky" in result.stdout.splitlines()
    assert run("init", url=clean_database).stdout == "everything is there already\n"
    result = run("init", "--json", url=clean_database)
    assert json.loads(result.stdout) == {"done": [], "differences": []}


def test_check_tells_differences_and_what_to_do(schema_database: str) -> None:
    lines = run("check", url=schema_database).stdout.splitlines()
    assert lines[:2] == [
        "the schema is good",
        "the AppView's tables are those of release 0.0.275; later ones: db init --appview VERSION",
    ]
    execute(schema_database, "ALTER TABLE bsky.post ADD COLUMN extra text")
    execute(schema_database, "DROP INDEX bsky.post_order_by_idx")
    result = run("check", url=schema_database)
    assert result.exit_code == 0
    assert "note: column bsky.post.extra: text; it does no harm" in result.stdout
    assert "execute: CREATE INDEX post_order_by_idx" in result.stdout
    execute(schema_database, 'ALTER TABLE bsky."like" DROP CONSTRAINT like_unique_subject')
    result = run("check", url=schema_database)
    assert result.exit_code == 6
    assert "error: constraint bsky.like.like_unique_subject" in result.stdout
    document = json.loads(run("check", "--json", url=schema_database).stdout)
    assert document["ok"] is False
    assert [item["severity"] for item in document["differences"]] == [
        "error", "warning", "note",
    ]  # fmt: skip
    assert document["appview"] == "0.0.275"
    assert [item["name"] for item in document["advice"]] == ["max_wal_size"]
    assert "advice: set max_wal_size to 20GB or more (it is 512MB)" in result.stdout


@pytest.mark.parametrize("command", ["check", "init"])
def test_a_table_of_bsync_is_missed_where_bsync_is_read(schema_database: str, command: str) -> None:
    execute(schema_database, "DROP TABLE bsky.draft")
    assert run(command, url=schema_database).exit_code == 0
    options = ("--set", "bsync_url=http://localhost:1", "--set", "bsync_key=a-key")
    result = run(command, *options, url=schema_database)
    assert result.exit_code == 6
    assert "error: table bsky.draft" in result.stdout


def test_init_ends_with_6_if_something_remains_different(schema_database: str) -> None:
    execute(schema_database, "DROP TABLE bsky.follow")
    result = run("init", url=schema_database)
    assert result.exit_code == 6
    assert "error: table bsky.follow" in result.stdout


def test_a_missing_embedded_server_says_what_to_do(tmp_path: Path) -> None:
    result = run("check", "--data-dir", str(tmp_path))
    assert result.exit_code == 69
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert str(tmp_path) in line
    assert "rsky-pipeline start" in line


def test_a_missing_server_is_one_line_without_the_password() -> None:
    result = run("init", url="postgresql://user:geheim@127.0.0.1:1/none")
    assert result.exit_code == 69
    (line,) = result.stderr.splitlines()
    assert "refused" in line
    assert "geheim" not in line


def test_a_missing_database_is_said_plainly(clean_database: str) -> None:
    result = run("init", url=other_database(clean_database, "missing"))
    assert result.exit_code == 69
    assert "does not exist" in result.stderr


def test_create_makes_role_and_database_that_init_can_use(clean_database: str) -> None:
    url = other_database(clean_database, "made").replace("postgres@", "pipeline:a%40b%26c@")
    execute(clean_database, "DROP DATABASE IF EXISTS made")
    execute(clean_database, "DROP ROLE IF EXISTS pipeline")
    try:
        shown = run("create", "--admin-url", clean_database, "--dry-run", url=url)
        assert shown.exit_code == 0, shown.output
        assert shown.stdout.splitlines() == [
            "CREATE ROLE \"pipeline\" LOGIN PASSWORD '***'",
            'CREATE DATABASE "made" OWNER "pipeline" ENCODING \'UTF8\' TEMPLATE template0',
            "CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public",
        ]
        assert "does not exist" in run("check", url=url).stderr
        made = run("create", "--admin-url", clean_database, "--json", url=url)
        assert made.exit_code == 0, made.output
        assert json.loads(made.stdout)["statements"] == shown.stdout.splitlines()
        assert "a@b&c" not in made.output
        assert run("init", url=url).exit_code == 0
        assert run("check", url=url).stdout.startswith("the schema is good")
        again = run("create", "--admin-url", clean_database, url=url)
        assert again.stdout.splitlines()[0].startswith("GRANT CONNECT, CREATE, TEMPORARY ON")
    finally:
        execute(clean_database, "DROP DATABASE IF EXISTS made")
        execute(clean_database, "DROP ROLE IF EXISTS pipeline")


def test_create_needs_a_role_and_an_administrator() -> None:
    result = run("create", url="postgresql://h/d")
    assert (result.exit_code, "has to name a role" in result.stderr) == (2, True)
    result = run("create", url="postgresql://u@db.example/d")
    assert (result.exit_code, "with --admin-url" in result.stderr) == (2, True)
    assert run("create").exit_code == 2  # the embedded one


@pytest.mark.parametrize("command", ["init", "check"])
def test_a_missing_privilege_is_exit_code_1(schema_database: str, command: str) -> None:
    execute(schema_database, "DROP ROLE IF EXISTS stranger")
    execute(schema_database, "CREATE ROLE stranger LOGIN")
    try:
        result = run(command, url=schema_database.replace("postgres@", "stranger@"))
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert "permission denied" in line
    finally:
        execute(schema_database, "DROP ROLE stranger")


@pytest.mark.parametrize("option", ["sslrootcert", "sslkey"])
def test_a_file_of_the_login_that_may_not_be_read_ends_the_start(
    clean_redis: str, clean_database: str, option: str
) -> None:
    """No waiting cures that: a unit that did wait for it would wait for ever."""
    with scratch_directory() as folder:
        file = folder / "secret.pem"
        file.touch(mode=0o000)
        settings = Settings(
            redis_url=clean_redis, database_url=f"{clean_database}&{option}={file}",
            data_dir=folder, run_dir=folder,
        )  # fmt: skip
        own = os.geteuid()
        os.seteuid(own or 65_534)  # root may read everything
        try:
            with pytest.raises(PermissionDeniedError, match=f"{file} of database_url: Permission"):
                _prepare_database(settings)
        finally:
            os.seteuid(own)


def test_a_role_that_may_not_extend_the_database_ends_the_start_for_good(
    clean_redis: str, clean_database: str
) -> None:
    execute(clean_database, "DROP ROLE IF EXISTS stranger")
    execute(clean_database, "CREATE ROLE stranger LOGIN")
    try:
        url = clean_database.replace("postgres@", "stranger@")
        with pytest.raises(PermissionDeniedError) as refused:
            _prepare_database(Settings(redis_url=clean_redis, database_url=url))
        assert "step 0001_appview of the schema" in str(refused.value)
        assert "GRANT CREATE ON DATABASE" in str(refused.value)
    finally:
        execute(clean_database, "DROP ROLE stranger")


def test_tables_of_another_origin_end_the_start_for_good(clean_database: str) -> None:
    execute(clean_database, "CREATE SCHEMA bsky")
    execute(clean_database, "CREATE TABLE bsky.record (uri text)")
    with pytest.raises(SettingError, match="without the official migrator's bookkeeping"):
        _prepare_database(Settings(database_url=clean_database))
