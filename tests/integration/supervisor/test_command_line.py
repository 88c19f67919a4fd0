"""The real program from outside: `run` with embedded stores, then `status` and `stop`."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rsky_pipeline.development.documents import ROOT
from tests.integration.supervisor.pipeline import until
from tests.stores import execute, scratch_directory
from tests.unit.supervisor.test_snapshot import conforms

PROGRAM = [sys.executable, "-m", "rsky_pipeline"]
ANY_PORT = [
    f"--set={name}_metrics_port=0" for name in ("supervisor", "indexer", "ingester", "backfiller")
]


def ask(directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [*PROGRAM, *arguments, "--data-dir", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def lengths(directory: Path) -> dict[str, int]:
    """Workers report the streams a moment after they are ready."""
    streams: dict[str, int] = json.loads(ask(directory, "status", "--json").stdout)["streams"]
    return streams


def test_the_indexer_runs_on_embedded_stores() -> None:
    with scratch_directory() as directory:
        log = directory / "log.txt"
        command = [*PROGRAM, "run", "--role", "indexer", "--workers", "indexer=2", *ANY_PORT]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--data-dir", str(directory)], stdout=output, stderr=output
            )
        try:
            until(
                lambda: '"running"' in log.read_text() or process.poll() is not None,
                "the pipeline runs",
                60,
            )
            assert '"indexer (2 workers) ready' in log.read_text(), log.read_text()
            assert ask(directory, "status").returncode == 1  # the other roles do not run here
            status = ask(directory, "status", "--json", "--role", "indexer")
            assert status.returncode == 0, status.stdout + status.stderr
            document = json.loads(status.stdout)
            assert document["healthy"] is True
            schema = json.loads((ROOT / "docs" / "status.schema.json").read_text())
            assert conforms(document, schema, schema)
            states = {one["name"]: one["state"] for one in document["processes"]}
            assert states == dict.fromkeys(
                ("valkey", "postgres", "indexer-1", "indexer-2"), "ready"
            )
            until(lambda: lengths(directory).get("firehose_live") == 0, "a first report", 30)
            stopped = ask(directory, "stop", "--ordered")
            assert stopped.returncode == 0
            lines = [
                line.split(" (")[0]
                for line in stopped.stdout.splitlines()
                if not line.startswith("  pass: ")
            ]
            assert lines == ["indexer", "postgres stopped", "valkey stopped"]
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
        # JSON lines throughout, since this is no terminal.
        assert all(line.startswith("{") for line in log.read_text().splitlines())


def start(directory: Path, *settings: str) -> "subprocess.Popen[str]":
    command = [*PROGRAM, "start", "--role", "indexer", *ANY_PORT, "--data-dir", str(directory)]
    return subprocess.Popen(
        [*command, *settings], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_start_gives_the_reason_of_a_start_that_fails(
    clean_redis: str, clean_database: str
) -> None:
    execute(clean_database, "CREATE SCHEMA bsky")
    execute(clean_database, "CREATE TABLE bsky.record (uri text)")
    with scratch_directory() as directory:
        began = start(directory, "--redis-url", clean_redis, "--database-url", clean_database)
        output, _ = began.communicate(timeout=60)
        assert began.returncode == 1
        assert "ended with code 78: the schema in postgresql://" in output
        assert "without the official migrator's bookkeeping" in output
        assert '"ts"' not in output


@pytest.mark.parametrize(
    ("store", "reason"),
    [
        ("redis", "Redis rejects the user or password"),
        ("database", 'role "nobody" does not exist'),
    ],
)
def test_a_refused_login_ends_the_start(
    store: str, reason: str, clean_redis: str, clean_database: str
) -> None:
    """An outage is waited for; nobody but an operator makes a password right."""
    if store == "redis":
        clean_redis = clean_redis.replace("unix://", "unix://user:wrong@")
    else:
        clean_database = clean_database.replace("postgres@", "nobody@")
    with scratch_directory() as directory:
        began = start(directory, "--redis-url", clean_redis, "--database-url", clean_database)
        output, _ = began.communicate(timeout=60)
        assert began.returncode == 1
        assert "ended with code 77" in output
        assert reason in output


def test_start_says_at_once_which_stores_it_waits_for() -> None:
    with scratch_directory() as directory:
        stores = (
            "--redis-url",
            "redis://127.0.0.1:1",
            "--database-url",
            "postgresql://127.0.0.1:1/x",
        )
        began = start(directory, *stores)
        assert began.stdout is not None
        lines = [began.stdout.readline() for _ in range(3)]
        began.send_signal(signal.SIGINT)
        began.communicate(timeout=60)
        assert lines[0].startswith("starting indexer; log: ")
        assert lines[1].startswith("  waiting for Redis: redis://127.0.0.1:1: ")
        assert lines[2].startswith("  waiting for the database: PostgreSQL at postgresql://")
        assert "refused" in lines[2]
