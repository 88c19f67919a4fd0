"""Rows that PostgreSQL refuses with errors of any class cost themselves and nothing else."""

import psycopg
import pytest

from rsky_pipeline.indexer import upkeep
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, FIREHOSE_LIVE
from tests.integration.indexer.kit import Network, Tables, did_of
from tests.integration.indexer.worker import Worker, entries, eventually, feed, indexing
from tests.stores import execute

REFUSE = """
CREATE FUNCTION bsky.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.creator = '{did}' THEN
        RAISE EXCEPTION 'this row is refused' USING ERRCODE = '{sqlstate}';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON bsky."like" FOR EACH ROW EXECUTE FUNCTION bsky.refuse();
"""


@pytest.mark.parametrize("sqlstate", ["21000", "XX000", "P0001", "42804", "0A000", "55000"])
@pytest.mark.parametrize("alone", [True, False])
async def test_a_statement_that_fails_for_an_account_costs_its_rows_only(
    clean_redis: str, tables: Tables, sqlstate: str, alone: bool
) -> None:
    """Also where the account fills whole batches, and where it sends a single entry."""
    execute(tables.url, REFUSE.format(did=did_of("bob"), sqlstate=sqlstate))
    net, history = Network(), Network(history=True)
    post = net.post("ann")
    bad = [net.like("bob", net.post("cyd")) for _ in range(1 if alone else 12)]
    feed(clean_redis, *bad)
    async with indexing(clean_redis, tables.url) as worker:
        feed(clean_redis, post, net.like("cyd", post))
        feed(clean_redis, history.follow("dan", "ann"), stream=FIREHOSE_BACKFILL)
        await eventually(lambda: tables.rows("follow") and tables.rows("like"))
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
        refused = "indexer_refused_total"
        await eventually(lambda: worker.metric(refused, reason="internal_error") == len(bad))
    letters = entries(clean_redis, f"{FIREHOSE_LIVE}_dlq")
    assert [letter[b"event"] for letter in letters] == [like.payload for like in bad]
    for letter, like in zip(letters, bad, strict=True):
        assert letter[b"reason"] == b"internal_error"
        error = letter[b"error"].decode()
        assert like.uri in error
        assert f"SQLSTATE {sqlstate}" in error
        assert 'INSERT INTO "like"' in error
    assert tables.counts(post) == (1, 0, 0, 0)


CHANGES = {
    "an added column": (
        (
            "ALTER TABLE bsky.\"like\" ADD COLUMN need text NOT NULL DEFAULT ''; "
            'ALTER TABLE bsky."like" ALTER COLUMN need DROP DEFAULT'
        ),
        'ALTER TABLE bsky."like" DROP COLUMN need',
        "column bsky.like.need",
    ),
    "a table of another name": (
        'ALTER TABLE bsky."like" RENAME TO likes',
        'ALTER TABLE bsky.likes RENAME TO "like"',
        'relation "like" does not exist',
    ),
    "a column of another type": (
        'ALTER TABLE bsky."like" ALTER COLUMN "subjectCid" TYPE integer USING 1',
        'ALTER TABLE bsky."like" ALTER COLUMN "subjectCid" TYPE varchar',
        "column bsky.like.subjectCid",
    ),
    "a constraint that is dropped": (
        'ALTER TABLE bsky."like" DROP CONSTRAINT like_unique_subject',
        'ALTER TABLE bsky."like" ADD CONSTRAINT like_unique_subject UNIQUE (subject, creator)',
        "constraint bsky.like.like_unique_subject",
    ),
}


def troubles(worker: Worker) -> list[str]:
    """Return the figures of what keeps the indexer from writing."""
    reports = worker.health.get("reports", ())
    return [
        each["figure"] for each in reports if each["finding"].startswith(("schema", "database"))
    ]


@pytest.mark.parametrize("change", CHANGES)
async def test_what_somebody_changes_in_the_tables_is_waited_for(
    clean_redis: str, tables: Tables, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends no worker, buries no entry, is shown with its reason, and needs no hand after."""
    monkeypatch.setattr(upkeep, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(upkeep, "CLEAN_EVERY", 1)
    do, undo, reason = CHANGES[change]
    net = Network()
    post = net.post("ann")
    feed(clean_redis, post, net.like("bob", post))
    async with indexing(clean_redis, tables.url) as worker:
        await worker.ready.wait()
        await eventually(lambda: tables.rows("like"))
        execute(tables.url, do)
        if "dropped" in change:
            await eventually(lambda: troubles(worker))
        feed(clean_redis, net.like("cyd", post))
        await eventually(lambda: any(reason in text for text in troubles(worker)))
        assert worker.metric("rsky_finding", finding="schema", subject="") == 2
        assert len(entries(clean_redis, FIREHOSE_LIVE)) == 1
        execute(tables.url, undo)
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
        await eventually(lambda: not troubles(worker))
        assert worker.metric("rsky_finding", finding="schema", subject="") == 0
    assert entries(clean_redis, f"{FIREHOSE_LIVE}_dlq") == []
    assert len(tables.rows("like")) == 2


async def test_a_table_that_somebody_locks_is_waited_for_and_the_locker_named(
    clean_redis: str, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "WATCH_SECONDS", 0.1)
    net = Network()
    async with indexing(clean_redis, tables.url) as worker:
        await worker.ready.wait()
        with psycopg.connect(tables.url, application_name="psql") as other:
            other.execute("LOCK TABLE bsky.post IN ACCESS EXCLUSIVE MODE")
            feed(clean_redis, net.post("ann"))
            locker = f"pid {other.info.backend_pid} (postgres, psql"
            await eventually(lambda: any(locker in each for each in troubles(worker)))
            assert worker.metric("rsky_finding", finding="database_locked", subject="") == 2
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
        await eventually(lambda: not troubles(worker))
    assert entries(clean_redis, f"{FIREHOSE_LIVE}_dlq") == []
