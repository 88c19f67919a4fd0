"""Blocks come and go under live events while workers are killed; in the end every row is right."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from rsky_pipeline.database.connection import Database
from rsky_pipeline.demo.simulator.compare import rows_to_form, table_report
from rsky_pipeline.demo.simulator.tables import TABLES, Rows
from tests.pipelines import Running, pipeline_on

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LIKE = "app.bsky.feed.like"
WORKERS = ("ingester-1", "backfiller-1", "indexer-1")


def free_ports(count: int) -> int:
    """Return the first of some ports in a row that nobody listens on."""
    for first in range(21_000, 60_000, 97):
        with ExitStack() as stack, suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no ports are free")


def kill(running: Running, names: tuple[str, ...]) -> None:
    """Kill workers, and wait until others stand in their place."""
    running.wait_for(lambda: set(names) <= running.pids().keys(), 90)
    before = running.pids()
    for name in names:
        os.kill(before[name], signal.SIGKILL)

    def are_back() -> bool:
        now = running.pids()
        return all(name in now and now[name] != before[name] for name in names)

    running.wait_for(are_back, 90)


def counted(database: Database, dids: list[str]) -> list[tuple[object, ...]]:
    """Return number and newest rev of the records of accounts."""
    return database.query(
        "SELECT did, count(*), max(rev) FROM record WHERE did = ANY(%s) GROUP BY 1 ORDER BY 1",
        [dids],
    )


def differences(running: Running, database: Database, blocked: set[str]) -> Iterator[object]:
    """Compare every table with the truth.

    Left out is what no repo shows: reposts and quotes of posts that a blocked account has made and
    deleted, of which nothing was ever seen here.
    """
    truth = running.simulation.control.truth(handles=True)

    def unseen(uri: object) -> bool:
        text = str(uri)
        return text[5:].partition("/")[0] in blocked and (text,) not in truth["record"]

    for table in TABLES.values():
        found = rows_to_form(table, database.query(table.query))
        wanted: Rows = truth.get(table.name, {})
        if table.name in {"feed_item", "quote", "post_agg.quoteCount"}:
            found = {
                key: row
                for key, row in found.items()
                if key in wanted or not any(unseen(value) for value in (*key, *row[:3]))
            }
        report = table_report(table, wanted, found)
        if report.differences:
            yield report


def test_blocks_under_live_events_and_kills_end_in_the_rows_of_an_undisturbed_run() -> None:
    port = free_ports(4)
    pds = f":{port + 1}"
    options = ["--calm", "--accounts=40", "--history=8", "--rate=80", f"--port={port}"]
    options += [f"--pds-url=http://127.0.0.1{pds}"] * 7 + [f"--pds-url=http://localhost{pds}"]
    with pipeline_on(*options) as running:
        control = running.simulation.control
        running.wait_for(lambda: control.progress().published > 400)
        running.wait_for(lambda: set(WORKERS) <= running.pids().keys())
        with Database.connect(running.settings.database_url or "", name="test") as database:
            block_and_lift(running, database, f"localhost{pds}")


def block_and_lift(running: Running, database: Database, host: str) -> None:
    control, likes = running.simulation.control, 'SELECT count(*) FROM "like"'
    running.wait_for(lambda: database.query(likes)[0][0] > 50)
    most = "SELECT did FROM record GROUP BY 1 ORDER BY count(*) DESC LIMIT 1"
    account = str(database.query(most)[0][0])
    running.command("block", "add", account, "--rows", "takedown", "--reason", "test")
    running.command("block", "add", "--host", host)
    running.command("block", "add", "--collection", LIKE, "--rows", "purge", "--yes")
    members = [did for (did,) in database.query("SELECT did FROM rsky_pipeline.blocked_account")]
    assert 3 <= len(members) < 10, "those whose documents name it, and not all that it lists"
    before = counted(database, [account, *members])
    kill(running, WORKERS)
    seen = control.progress().published
    running.wait_for(lambda: control.progress().published > seen + 300)
    assert counted(database, [account, *members]) == before
    assert database.query(likes) == [(0,)]
    taken = 'SELECT "takedownRef" IS NOT NULL FROM actor WHERE did = %s'
    assert database.query(taken, [account]) == [(True,)]
    running.command("block", "remove", account, "--host", host, "--collection", LIKE)
    kill(running, ("backfiller-1", "indexer-1"))
    seen = control.progress().published
    running.wait_for(lambda: control.progress().published > seen + 200)
    control.stop()
    running.wait_until_indexed(240)
    assert list(differences(running, database, {account, *members})) == []
    assert database.query(taken, [account]) == [(False,)]
    assert database.query(likes)[0][0] > 0
    assert running.command("db", "compare", account, *members)
    assert running.observer.dead_letters() == {}
