"""`config check --connect`: what each peer says, and what the exit code follows from."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rsky_pipeline.cli import main
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.demo.processes import Simulation
from rsky_pipeline.operations.connecting import unreadable_files
from tests.bsync import KEY, running_bsync
from tests.stores import execute, scratch_directory

NOWHERE = "ws://127.0.0.1:1"


def connect(*options: str, **environ: str) -> tuple[int, dict[str, dict[str, Any]]]:
    arguments = ["config", "check", "--connect", "--json", *options]
    result = CliRunner().invoke(main, arguments, env=environ)
    assert result.stdout, result.output
    return result.exit_code, {each["peer"]: each for each in json.loads(result.stdout)["peers"]}


def test_every_peer_is_asked(clean_redis: str, schema_database: str) -> None:
    with scratch_directory() as folder:
        simulation = Simulation(folder, ["--rate=50"])
        try:
            environ = {
                **simulation.environment,
                "RSKY_PIPELINE_REDIS_URL": clean_redis,
                "RSKY_PIPELINE_DATABASE_URL": schema_database,
            }
            code, peers = connect(**environ)
            assert code == 0, peers
            kinds = ["Redis", "PostgreSQL", "relay", "labeler", "directory", "handle"]
            assert [name.split()[0] for name in peers] == kinds, peers
            details = {name.split()[0]: each["detail"] for name, each in peers.items()}
            assert "the schema is up to date" in details["PostgreSQL"]
            assert "events come, listRepos answers" in details["relay"]

            relay = environ["RSKY_PIPELINE_RELAY_HOSTS"]
            code, peers = connect("--relay", relay, "--relay", NOWHERE, **environ)
            assert code == 69
            assert [name for name, each in peers.items() if not each["ok"]] == ["relay 127.0.0.1:1"]

            wrong = clean_redis.replace("unix://", "unix://user:wrong@")
            code, peers = connect("--redis-url", wrong, "--relay", NOWHERE, **environ)
            assert code == 2  # which nobody but an operator cures
            assert peers["Redis"]["is_wrong"]
            assert "rejects the user or password" in peers["Redis"]["detail"]
            assert "wrong@" not in json.dumps(peers)
        finally:
            simulation.process.end()


def test_a_role_that_may_not_make_the_schema_is_found(
    clean_redis: str, clean_database: str
) -> None:
    execute(clean_database, "DROP ROLE IF EXISTS stranger")
    execute(clean_database, "CREATE ROLE stranger LOGIN")
    try:
        url = clean_database.replace("postgres@", "stranger@")
        options = ["--redis-url", clean_redis, "--database-url", url, "--relay", NOWHERE]
        code, peers = connect(*options, "--plc-url", "http://127.0.0.1:1")
        assert code == 2
        assert "stranger may not make the schema: GRANT CREATE" in peers["PostgreSQL"]["detail"]
        assert not peers["directory"]["ok"]
        assert not peers["directory"]["is_wrong"]
        missing = clean_database.replace("postgres@", "nobody@")
        code, peers = connect(*options[:2], "--database-url", missing, "--relay", NOWHERE)
        assert (code, "`rsky-pipeline db create`" in peers["PostgreSQL"]["detail"]) == (2, True)
    finally:
        execute(clean_database, "DROP ROLE stranger")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root asks for another account")
def test_files_that_the_units_cannot_read_are_named(tmp_path: Path) -> None:
    """Root, who checks, reads everything: the units would wait for ever."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o001)
    good, bad = tmp_path / "ca.pem", tmp_path / "key.pem"
    good.touch(0o644)
    bad.touch(0o600)
    settings = Settings(
        redis_url=f"rediss://h?ssl_ca_certs={good}&ssl_keyfile={bad}",
        database_url=f"postgresql://h/d?sslrootcert={tmp_path}/none&sslcert={good}",
    )
    first, second = unreadable_files(settings, "nobody")
    assert first.startswith(f"redis_url: the account nobody of the units cannot read {bad}")
    assert second.startswith("database_url: the account nobody of the units cannot read")
    assert unreadable_files(settings, "no-such-account") == []
    system = Settings(database_url="postgresql://h/d?sslrootcert=system&sslmode=verify-full")
    assert unreadable_files(system, "nobody") == []


def test_bsync_is_asked_with_its_key(clean_redis: str) -> None:
    with running_bsync() as bsync:
        environ = {
            "RSKY_PIPELINE_REDIS_URL": clean_redis, "RSKY_PIPELINE_RELAY_HOSTS": NOWHERE,
            "RSKY_PIPELINE_PLC_URL": "http://127.0.0.1:1", "RSKY_PIPELINE_BSYNC_URL": bsync.url,
            "RSKY_PIPELINE_BSYNC_KEY": KEY,
        }  # fmt: skip
        peers = connect(**environ)[1]
        assert peers["bsync"]["ok"]
        bsync.key = "another"
        code, peers = connect(**environ)
    assert code == 2
    assert peers["bsync"]["is_wrong"]
    assert peers["bsync"]["detail"] == "bsync refuses bsync_key (401)"
    assert KEY not in json.dumps(peers)
