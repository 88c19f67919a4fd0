"""Live events before history when the database is the bottleneck."""

from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, FIREHOSE_LIVE
from tests.integration.indexer.kit import Network, Tables, did_of
from tests.integration.indexer.worker import entries, eventually, feed, indexing
from tests.stores import execute, redis_client

BATCH = 100
LIVE, HISTORY = 4_000, 6_000
SLOW = (
    """CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN PERFORM pg_sleep(0.04); RETURN NULL; END'""",
    """CREATE TRIGGER slow AFTER INSERT ON bsky.record
    FOR EACH STATEMENT EXECUTE FUNCTION public.slow()""",
)


def length(url: str, stream: str) -> int:
    with redis_client(url) as client:
        return int(client.xlen(stream))


async def test_live_lag_stays_bounded_while_history_waits(clean_redis: str, tables: Tables) -> None:
    for statement in SLOW:
        execute(tables.url, statement)
    live, history = Network(), Network(history=True)
    feed(
        clean_redis,
        *(history.follow("old", f"p{number}") for number in range(HISTORY)),
        stream=FIREHOSE_BACKFILL,
    )
    feed(clean_redis, *(live.follow("new", f"p{number}") for number in range(LIVE)))
    async with indexing(
        clean_redis, tables.url, indexer_batch_size=BATCH, indexer_backfill_share_percent=10
    ) as worker:
        await eventually(lambda: length(clean_redis, FIREHOSE_LIVE) < LIVE - 5 * BATCH)
        await worker.ready.wait()
        assert worker.metric("indexer_live_behind") in (0, 1)
        # More than a batch of live events waits until the end, so that history has its share only.
        await eventually(lambda: length(clean_redis, FIREHOSE_LIVE) <= 2 * BATCH, 60)
        done = HISTORY - length(clean_redis, FIREHOSE_BACKFILL)
        assert BATCH <= done <= LIVE // 4
        assert 0 < worker.metric("indexer_backfill_share") < 0.3
        spent = worker.metric("indexer_apply_seconds_total", stream=FIREHOSE_LIVE)
        assert worker.metric("indexer_apply_seconds_total", stream=FIREHOSE_BACKFILL) < spent
        # Live events that come now do not wait behind what is left of history.
        before = length(clean_redis, FIREHOSE_BACKFILL)
        feed(clean_redis, live.follow("late", "somebody"))
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
        assert before - length(clean_redis, FIREHOSE_BACKFILL) < before
        await eventually(lambda: not entries(clean_redis, FIREHOSE_BACKFILL), 60)
    assert tables.profile_counts("old") == (0, HISTORY, 0)
    assert tables.profile_counts("new") == (0, LIVE, 0)
    assert tables.rows("follow", "uri", f"creator = '{did_of('late')}'")
