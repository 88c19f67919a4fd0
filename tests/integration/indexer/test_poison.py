"""Rows that PostgreSQL refuses with errors of any class cost themselves and nothing else."""

import pytest

from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, FIREHOSE_LIVE
from tests.integration.indexer.kit import Network, Tables, did_of
from tests.integration.indexer.worker import entries, eventually, feed, indexing
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
