"""`db shell` and `stores shell`: who is logged in, and where the password can be seen."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.connection import Database
from rsky_pipeline.embedded.locations import postgres_folder, resolve_directories
from rsky_pipeline.operations.shell import psql, redis_cli
from rsky_pipeline.runtime.errors import SettingError, UnavailableError
from rsky_pipeline.streams.connection import Store, connect

# A client that shows how it was called.
SHOWING = """#!/bin/sh
echo "$0 $@"
echo "password=$REDISCLI_AUTH"
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH on which nothing is but a shell's own programs, and what the test puts there."""
    for name in ("sh", "cat", "tr", "echo"):
        (tmp_path / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def put(folder: Path, name: str) -> None:
    (folder / name).write_text(SHOWING)
    (folder / name).chmod(0o755)


def resolved(database_url: str) -> Settings:
    return resolve_directories(Settings(database_url=database_url))


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    names = {f"RSKY_PIPELINE_{name.upper()}": text for name, text in environ.items()}
    return subprocess.run(
        [sys.executable, "-m", "rsky_pipeline", *words],
        env={**os.environ, **names}, capture_output=True, text=True, check=False, timeout=60,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_psql_is_where_the_pipeline_is(programs: Path, schema_database: str) -> None:
    url = schema_database.replace("postgres@", "postgres:ge%3Aheim@") + "&connect_timeout=7"
    missing = run("db", "shell", database_url=url)
    assert missing.returncode == 69
    assert "psql is not installed: apt-get install postgresql-client" in missing.stderr

    (programs / "psql").symlink_to(postgres_folder() / "bin" / "psql")
    shown = run(
        "db", "shell", "--database-url", url, "--", "-XAt", "-c", "SHOW search_path", "-c",
        "SELECT count(*) FROM actor, rsky_pipeline.gap", "-c", "SELECT current_database()",
        "-c", r"\! tr '\0' '\n' < /proc/$PPID/cmdline", "-c", r"\! echo $PGPASSWORD",
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    path, count, name, *words, password = shown.stdout.splitlines()
    assert (path, count) == ('"bsky",rsky_pipeline,public', "0")
    assert name in schema_database
    assert password == "ge:heim"
    assert "connect_timeout=7" in words[1]
    assert "geheim" not in "".join(words).replace(":", "").replace("%3A", "")


def test_the_exit_code_is_that_of_psql(programs: Path, schema_database: str) -> None:
    (programs / "psql").symlink_to(postgres_folder() / "bin" / "psql")
    failed = run("db", "shell", "--", "-X", "-c", "SELECT nothing", database_url=schema_database)
    assert failed.returncode == 1
    assert 'column "nothing" does not exist' in failed.stderr


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://u:geheim@127.0.0.1:1/d", "cannot be used"),
        (None, "does not run: start the pipeline with"),
    ],
)
def test_a_database_that_is_away_is_named(
    programs: Path, tmp_path: Path, url: str | None, reason: str
) -> None:
    given = {"database_url": url} if url else {}
    away = run("db", "shell", data_dir=str(tmp_path / "data"), **given)
    assert away.returncode == 69
    assert reason in away.stderr
    assert "geheim" not in away.stderr


def test_secrets_without_a_variable_are_in_a_file_of_the_process(
    programs: Path, schema_database: str
) -> None:
    put(programs, "psql")
    settings = resolved(f"{schema_database}&sslpassword=geheim")
    with Database.connect(schema_database, name="test") as database:
        call = psql(settings, database, ["-X"])
        assert "geheim" not in str(call)
        assert call.arguments[0].startswith("--dbname=service=rsky-pipeline ")
        service = Path(call.environment["PGSERVICEFILE"]).read_text()
        assert service == "[rsky-pipeline]\nsslpassword=geheim\n"
        found = psycopg.conninfo.conninfo_to_dict(call.arguments[0].removeprefix("--dbname="))
        assert found["options"] == '-csearch_path="bsky",rsky_pipeline,public'
        with pytest.raises(SettingError, match="sslpassword"):
            psql(resolved(f"{schema_database}&sslpassword=%20x"), database, [])


def test_a_pooler_is_told_no_schema(programs: Path, schema_database: str) -> None:
    put(programs, "psql")
    with Database.connect(schema_database, name="test") as database:
        database.pooled = True
        call = psql(resolved(schema_database), database, [])
    assert "search_path" not in call.arguments[0]
    assert 'SET search_path TO "bsky", rsky_pipeline, public;' in call.remarks[0]


def test_redis_cli_is_where_the_pipeline_is(programs: Path, clean_redis: str) -> None:
    missing = run("stores", "shell", redis_url=clean_redis)
    assert missing.returncode == 69
    assert "valkey-cli or redis-cli is not installed: apt-get install redis-tools" in missing.stderr
    put(programs, "redis-cli")
    shown = run("store", "shell", "--", "XLEN", "firehose_live", redis_url=f"{clean_redis}?db=3")
    assert shown.returncode == 0, shown.stderr
    socket = clean_redis.removeprefix("unix://")
    called = f"{programs}/redis-cli -n 3 -s {socket} XLEN firehose_live"
    assert shown.stdout.splitlines() == [called, "password="]
    put(programs, "valkey-cli")
    shown = run("stores", "shell", redis_url=clean_redis)
    assert shown.stdout.startswith(f"{programs}/valkey-cli -n 0")
    away = run("stores", "shell", redis_url="redis://u:geheim@127.0.0.1:1")
    assert away.returncode == 69
    assert "geheim" not in away.stderr


@dataclass(frozen=True, slots=True)
class Opened:
    """A store that has found its server, which nothing is connected to."""

    host: str
    port: int = 6379
    on_cluster: bool = False

    def address(self) -> tuple[str, int]:
        return self.host, self.port


def called(url: str, store: Store | Opened) -> tuple[list[str], str, list[str]]:
    """Return arguments, password and remarks for a URL."""
    call = redis_cli(Settings(redis_url=url), store, [])  # type: ignore[arg-type]
    assert set(call.environment) in (set(), {"REDISCLI_AUTH", "VALKEYCLI_AUTH"})
    assert "geheim" not in str(call)
    return list(call.arguments), call.environment.get("REDISCLI_AUTH", ""), list(call.remarks)


def test_login_and_tls_of_redis_are_passed(programs: Path) -> None:
    put(programs, "redis-cli")
    url = "redis://me:ge%40heim@redis.example:7000/2"
    words, password, _ = called(url, Opened("redis.example", 7000))
    assert words == ["-n", "2", "-h", "redis.example", "-p", "7000", "--user", "me"]
    assert password == "ge@heim"
    words, _, _ = called("redis://n1,n2", Opened("10.0.0.7", 7001, on_cluster=True))
    assert words == ["-n", "0", "-h", "10.0.0.7", "-p", "7001", "-c"]
    plain = Opened("::1")
    files = "ssl_ca_certs=/ca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem"
    words, password, remarks = called(f"rediss://:geheim@[::1]?{files}", plain)
    assert words == [
        *("-n", "0", "-h", "::1", "-p", "6379", "--tls"),
        *("--cacert", "/ca.pem", "--cert", "/c.pem", "--key", "/k.pem"),
    ]
    assert password == "geheim"
    assert remarks == ["redis-cli checks the server's certificate, not its name"]
    words, _, remarks = called("rediss://h?ssl_cert_reqs=none", plain)
    assert words[-2:] == ["--tls", "--insecure"]
    assert remarks == []
    with pytest.raises(SettingError, match="ssl_password"):
        called(f"rediss://h?{files}&ssl_password=geheim", plain)


def test_behind_sentinels_the_present_primary_is_asked(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(programs, "redis-cli")
    url = "redis+sentinel://:geheim@127.0.0.1:1/main/4"
    store = connect(url, name="test")
    with pytest.raises(Exception, match="no sentinel has a primary main"):
        store.address()
    monkeypatch.setattr(Store, "address", lambda _: ("10.0.0.7", 6380))
    assert called(url, store)[0] == ["-n", "4", "-h", "10.0.0.7", "-p", "6380"]


def test_the_embedded_database_is_opened_with_its_own_psql(
    programs: Path, schema_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path, database_url=schema_database)
    with Database.connect(schema_database, name="test") as database:
        with pytest.raises(UnavailableError):
            psql(settings, database, [])
        monkeypatch.setattr("rsky_pipeline.operations.shell.embedded_stores", lambda _: (1, 1))
        assert psql(settings, database, []).program == str(postgres_folder() / "bin" / "psql")
