"""Outcomes of repos in PostgreSQL."""

from datetime import UTC, datetime
from functools import partial

import trio
import trio.testing

from rsky_pipeline.backfiller.store import RepoOutcome, outcome_writer
from rsky_pipeline.database.connection import Database
from rsky_pipeline.runtime.link import Link


async def test_an_unstorable_outcome_holds_up_no_other(schema_database: str) -> None:
    """The endpoint that a PLC document names has a NUL, the code of an error is very long."""
    link = Link(partial(Database.connect, schema_database, name="test"), purpose="outcomes")
    writer = outcome_writer(link)
    outcomes = [RepoOutcome(f"did:plc:{number}", "done", rev="3abc") for number in range(61)]
    outcomes += [
        RepoOutcome("did:plc:nul", "failed", "permanent", "pds", host="a\0b.com"),
        RepoOutcome("did:plc:long", "failed", "permanent", "X" * 9_000, "\ud800" * 9_000),
        RepoOutcome("did:plc:\0", "done"),
        RepoOutcome("did:plc:year", "waiting", next_attempt_at=datetime(1, 1, 1, tzinfo=UTC)),
    ]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for outcome in outcomes:
                nursery.start_soon(writer.call, outcome)
    with Database.connect(schema_database, name="test") as database:
        rows = database.query("SELECT did, host FROM rsky_pipeline.backfill_repo")
    stored: dict[str, str | None] = dict(rows)
    assert stored.keys() == {outcome.did for outcome in outcomes} - {"did:plc:\0"}
    assert stored["did:plc:nul"] == "a\ufffdb.com"
    link.close()


async def test_the_newest_outcome_of_a_repo_stands(schema_database: str) -> None:
    link = Link(partial(Database.connect, schema_database, name="test"), purpose="outcomes")
    writer = outcome_writer(link)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for attempts in range(3):
                outcome = RepoOutcome("did:plc:a", "waiting", attempts=attempts)
                nursery.start_soon(writer.call, outcome)
                await trio.testing.wait_all_tasks_blocked()
    with Database.connect(schema_database, name="test") as database:
        rows = database.query("SELECT did, attempts FROM rsky_pipeline.backfill_repo")
    assert rows == [("did:plc:a", 2)]
    link.close()
