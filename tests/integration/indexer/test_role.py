"""The indexer between a real Redis and a real PostgreSQL."""

import threading
from typing import Any

import orjson
import psycopg
import pytest
import trio

from rsky_pipeline.database.errors import DatabaseUnavailableError
from rsky_pipeline.indexer import role
from rsky_pipeline.indexer.core.apply import Applier
from rsky_pipeline.runtime.errors import StoreError
from rsky_pipeline.streams.errors import StoreUnavailableError
from rsky_pipeline.streams.names import (
    FIREHOSE_BACKFILL,
    FIREHOSE_LIVE,
    LABEL_LIVE,
    STREAMS,
    TRIALS,
)
from tests.integration.indexer.kit import Event, Network, Tables, account, did_of, repo
from tests.integration.indexer.worker import GROUP, entries, eventually, feed, indexing
from tests.stores import execute, redis_client

LABEL = {"src": did_of("lab"), "uri": did_of("ann"), "val": "spam", "cts": "2024-01-01T00:00:00Z"}


def add(redis_url: str, stream: str, **fields: bytes) -> None:
    with redis_client(redis_url) as client:
        client.xadd(stream, dict(fields.items()))


def claim(redis_url: str, consumer: str, *, times: int = 1, stream: str = FIREHOSE_LIVE) -> None:
    """Deliver everything in a stream to a consumer that then does nothing."""
    with redis_client(redis_url) as client:
        client.xgroup_create(stream, GROUP, "0", mkstream=True)
        for _, page in client.xreadgroup(GROUP, consumer, {stream: ">"}, count=10_000):
            ids = [entry_id for entry_id, _ in page]
            client.xclaim(stream, GROUP, consumer, 0, ids, retrycount=times)


def pending(redis_url: str) -> int:
    """Return how many live entries are delivered and not acknowledged."""
    with redis_client(redis_url) as client:
        return int(client.xpending(FIREHOSE_LIVE, GROUP)["pending"])


async def test_all_streams_are_applied_and_emptied(clean_redis: str, tables: Tables) -> None:
    net, history = Network(), Network(history=True)
    post = net.post("ann")
    like = net.like("bob", post)
    follow = history.follow("cyd", "ann")
    feed(clean_redis, post, like, account("bob", 3, active=False, status="takendown"))
    feed(clean_redis, follow, repo("cyd", 9), stream=FIREHOSE_BACKFILL)
    labels = orjson.dumps({"seq": 1, "labels": [LABEL]})
    add(clean_redis, LABEL_LIVE, labels=labels)
    async with indexing(clean_redis, tables.url) as worker:
        await worker.ready.wait()
        await eventually(lambda: tables.rows("follow") and tables.rows("label"))
        await eventually(lambda: not any(entries(clean_redis, stream) for stream in STREAMS))
        await eventually(lambda: worker.health.get("events") == 6)
        assert worker.metric("indexer_records_inserted_total") == 3
        assert worker.metric("indexer_events_processed_total") == 3
        assert worker.metric("indexer_like_events_total") == 1
        assert worker.metric("indexer_repo_events_total") == 1
        assert worker.metric("indexer_account_events_total") == 1
        assert worker.metric("indexer_labels_added_total") == 1
        assert worker.metric("indexer_notifications_total") == 1
        assert worker.metric("indexer_event_lag_seconds", stream=FIREHOSE_LIVE) > 0
    assert tables.counts(post) == (1, 0, 0, 0)
    assert tables.rows("actor", '"upstreamStatus"', f"did = '{did_of('bob')}'") == [("takendown",)]
    assert tables.rows("actor_sync", "did", f"did = '{did_of('cyd')}'") == [(did_of("cyd"),)]
    assert tables.notified("ann") == [("like", like.uri)]


async def test_ready_means_that_own_pending_entries_are_applied(
    clean_redis: str, tables: Tables
) -> None:
    net = Network()
    feed(clean_redis, *(net.follow("ann", f"p{number}") for number in range(300)))
    claim(clean_redis, "test-indexer-1")
    async with indexing(clean_redis, tables.url, indexer_batch_size=50) as worker:
        await worker.ready.wait()
        assert len(tables.rows("follow", "uri")) == 300
    assert entries(clean_redis, FIREHOSE_LIVE) == []


async def test_entries_of_a_dead_consumer_are_taken_over(clean_redis: str, tables: Tables) -> None:
    net = Network()
    feed(clean_redis, *(net.follow("ann", f"p{number}") for number in range(250)))
    claim(clean_redis, "somebody-else")
    async with indexing(clean_redis, tables.url, claim_idle_seconds=1) as worker:
        await eventually(lambda: len(tables.rows("follow", "uri")) == 250)
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
        assert worker.metric("indexer_entries_claimed_total") == 250


async def test_one_poisonous_event_costs_only_itself(clean_redis: str, tables: Tables) -> None:
    execute(tables.url, "ALTER TABLE bsky.post ADD CHECK (text <> 'poison')")
    net = Network()
    posts = [net.post("ann", "poison" if number == 1234 else "fine") for number in range(2_000)]
    feed(clean_redis, *posts)
    async with indexing(clean_redis, tables.url, indexer_batch_size=2_000) as worker:
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE), 60)
        await eventually(lambda: worker.metric("indexer_dead_letters_total") == 1)
        assert worker.metric("indexer_refused_total", reason="bad_data") == 1
    assert len(tables.rows("post", "uri")) == 1_999
    assert tables.profile_counts("ann") == (0, 0, 1_999)
    (letter,) = entries(clean_redis, f"{FIREHOSE_LIVE}_dlq")
    assert letter[b"reason"] == b"bad_data"
    assert letter[b"event"] == posts[1234].payload


async def test_what_cannot_be_read_becomes_a_dead_letter(clean_redis: str, tables: Tables) -> None:
    net = Network()
    good = net.post("ann")
    bad: list[tuple[Event, bytes]] = [
        (b"{", b"invalid_json"),
        (b'{"type":"dance","time":"","did":""}', b"unknown_type"),
        (net.put("ann", "app.bsky.feed.post", {"text": 1}), b"wrong_type"),
        (net.put("ann", "app.bsky.feed.like", {}), b"missing_field"),
        (net.put("ann", "app.bsky.graph.follow", {"subject": "bob"}), b"invalid_did"),
        (net.put("ann", "app.bsky.feed.post", {"text": "x"}, rkey="a/b"), b"invalid_rkey"),
    ]
    feed(clean_redis, *(event for event, _ in bad), good)
    add(clean_redis, FIREHOSE_LIVE, other=b"field")
    wrong = {**LABEL, "exp": "never"}
    add(clean_redis, LABEL_LIVE, labels=orjson.dumps({"seq": 1, "labels": [wrong, LABEL]}))
    async with indexing(clean_redis, tables.url) as worker:
        await eventually(lambda: tables.rows("post", "uri") == [(good.uri,)])
        await eventually(lambda: tables.rows("label", "val") == [("spam",)])
        await eventually(lambda: not any(entries(clean_redis, stream) for stream in STREAMS))
        await eventually(lambda: worker.metric("indexer_dead_letters_total") == len(bad) + 2)
        assert worker.metric("indexer_refused_total", reason="invalid_json") == 1
        rejected = "indexer_rejected_records_total"
        for nsid, reason, count in (
            ("app.bsky.feed.post", "wrong_type", 1),
            ("app.bsky.feed.like", "missing_field", 1),
            ("app.bsky.graph.follow", "invalid_did", 1),
            ("app.bsky.graph.follow", "wrong_type", 0),
        ):
            assert worker.metric(rejected, collection=nsid, reason=reason) == count
    letters = entries(clean_redis, f"{FIREHOSE_LIVE}_dlq")
    assert [letter[b"reason"] for letter in letters] == [reason for _, reason in bad] + [
        b"missing_field"
    ]
    (label,) = entries(clean_redis, f"{LABEL_LIVE}_dlq")
    assert label[b"reason"] == b"invalid_label"


async def test_an_entry_that_kills_workers_is_buried_and_its_neighbours_are_not(
    clean_redis: str, tables: Tables
) -> None:
    net = Network()
    posts = [net.post("ann", str(number)) for number in range(20)]
    ids = feed(clean_redis, *posts)
    claim(clean_redis, "test-indexer-1", times=3)
    with redis_client(clean_redis) as client:
        client.xclaim(FIREHOSE_LIVE, GROUP, "test-indexer-1", 0, [ids[4]], retrycount=7)
        client.hset(TRIALS, f"{FIREHOSE_LIVE} {GROUP} {ids[4]}", "2 test-indexer-1")
    async with indexing(clean_redis, tables.url, max_deliveries=5) as worker:
        await worker.ready.wait()
        assert len(tables.rows("post", "uri")) == 19
    assert worker.metric("indexer_refused_total", reason="crashes_worker") == 1
    (letter,) = entries(clean_redis, f"{FIREHOSE_LIVE}_dlq")
    assert letter[b"reason"] == b"crashes_worker"
    assert letter[b"event"] == posts[4].payload


async def test_collections_that_nobody_indexes_are_ignored(
    clean_redis: str, tables: Tables
) -> None:
    net = Network()
    feed(
        clean_redis,
        net.put("ann", "app.bsky.unheard.of", {}),
        net.put("ann", "com.example.thing", {}),
        net.put("ann", "app.bsky.actor.status", {"status": "live"}),
    )
    async with indexing(clean_redis, tables.url) as worker:
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
        await eventually(lambda: worker.metric("indexer_ignored_events_total") == 2)
    assert [row[0].split("/")[3] for row in tables.rows("record", "uri")] == [
        "app.bsky.actor.status"
    ]
    assert entries(clean_redis, f"{FIREHOSE_LIVE}_dlq") == []


async def test_a_batch_is_pending_until_it_is_committed(clean_redis: str, tables: Tables) -> None:
    """The one before it is acknowledged meanwhile."""
    net = Network()
    first, second = net.post("ann"), net.post("bob")
    tables.apply(net.post("bob"))
    async with indexing(clean_redis, tables.url) as worker:
        await worker.ready.wait()
        with tables.database.transaction() as tx:
            tx.query("SELECT FROM actor WHERE did = %s FOR UPDATE", [did_of("bob")])
            feed(clean_redis, first)
            with Tables(tables.url).database as other:
                await eventually(
                    lambda: other.query("SELECT FROM post WHERE uri = %s", [first.uri])
                )
            feed(clean_redis, second)
            await eventually(lambda: pending(clean_redis) == 1)
            await trio.sleep(0.3)
            assert len(entries(clean_redis, FIREHOSE_LIVE)) == pending(clean_redis) == 1
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
    assert tables.rows("post", "uri", f"uri = '{second.uri}'") == [(second.uri,)]


async def test_a_dead_letter_that_redis_refuses_holds_up_no_other_entry(
    clean_redis: str, tables: Tables
) -> None:
    with redis_client(clean_redis) as client:
        client.set(f"{FIREHOSE_LIVE}_dlq", "not a stream")
    net = Network()
    malformed, post, later = b"{", net.post("ann"), net.post("bob")
    feed(clean_redis, malformed, post)
    async with indexing(clean_redis, tables.url):
        await eventually(lambda: len(entries(clean_redis, FIREHOSE_LIVE)) == 1)
        feed(clean_redis, later)
        await eventually(lambda: len(tables.rows("post", "uri")) == 2)
        await eventually(lambda: len(entries(clean_redis, FIREHOSE_LIVE)) == 1)
        assert entries(clean_redis, FIREHOSE_LIVE)[0][b"event"] == malformed
        assert pending(clean_redis) == 1


@pytest.mark.parametrize(
    ("owner", "step", "failure", "written"),
    [
        (Applier, "apply", DatabaseUnavailableError("gone"), 0),
        (role, "acknowledge", StoreUnavailableError("gone"), 1),
    ],
)
async def test_an_escalated_stop_acknowledges_nothing_that_is_not_committed(
    clean_redis: str, tables: Tables, monkeypatch: pytest.MonkeyPatch,
    owner: object, step: str, failure: StoreError, written: int,
) -> None:  # fmt: skip
    def fail(*_: Any, **__: Any) -> None:
        failed.set()
        raise failure

    failed, net = threading.Event(), Network()
    feed(clean_redis, *(net.post("ann") for _ in range(4)))
    with monkeypatch.context() as broken:
        broken.setattr(owner, step, fail)
        async with indexing(clean_redis, tables.url, indexer_batch_size=1) as worker:
            await eventually(failed.is_set)
            await eventually(lambda: pending(clean_redis) >= 2)
            worker.context.escalated.set()
        assert len(entries(clean_redis, FIREHOSE_LIVE)) == 4
    assert len(tables.rows("post", "uri")) >= written
    async with indexing(clean_redis, tables.url):
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
    assert len(tables.rows("post", "uri")) == 4


OURS = "FROM pg_stat_activity WHERE application_name LIKE '%test-indexer%'"
TERMINATE = f"SELECT pg_terminate_backend(pid) {OURS}"
WAITS = f"SELECT pid {OURS} AND wait_event_type = 'Lock'"


async def test_a_lost_database_connection_is_made_again(clean_redis: str, tables: Tables) -> None:
    net = Network()
    feed(clean_redis, net.post("ann"))
    async with indexing(clean_redis, tables.url) as worker:
        await eventually(lambda: len(tables.rows("post", "uri")) == 1)
        tables.database.query(TERMINATE)  # an idle one, which is replaced before its next use
        feed(clean_redis, net.post("ann"))
        await eventually(lambda: len(tables.rows("post", "uri")) == 2)
        with psycopg.connect(tables.url) as other:
            other.execute("LOCK TABLE bsky.post")
            feed(clean_redis, net.post("ann"))
            await eventually(lambda: tables.database.query(WAITS))
            tables.database.query(TERMINATE)  # one in the middle of a batch
            await eventually(lambda: worker.metric("indexer_database_failures_total") >= 1)
        await eventually(lambda: len(tables.rows("post", "uri")) == 3)
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
        assert worker.metric("indexer_unexpected_errors_total") >= 1


async def test_lost_redis_connections_are_made_again(clean_redis: str, tables: Tables) -> None:
    net = Network()
    feed(clean_redis, net.post("ann"))
    async with indexing(clean_redis, tables.url) as worker:
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
        with redis_client(clean_redis) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        feed(clean_redis, net.post("ann"))
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
        assert worker.metric("indexer_store_failures_total") >= 1
    assert len(tables.rows("post", "uri")) == 2


async def test_every_metric_is_exported_from_the_start(clean_redis: str, tables: Tables) -> None:
    async with indexing(clean_redis, tables.url) as worker:
        await worker.ready.wait()
        for name in (
            "events_processed", "create_events", "update_events", "delete_events", "repo_events",
            "account_events", "identity_events", "db_writes", "errors", "expected_errors",
            "unexpected_errors", "post_events", "like_events", "repost_events", "follow_events",
            "block_events", "profile_events", "labels_processed", "labels_added",
            "labels_removed", "ack_failures", "records_inserted",
        ):  # fmt: skip
            assert worker.metric(f"indexer_{name}_total") == 0
        assert worker.metric("indexer_pending_messages") == 0
        assert worker.metric("indexer_active_tasks") == 0
        assert worker.metric("rsky_stream_length", stream=LABEL_LIVE) == 0


async def test_a_database_that_lost_transactions_is_noticed_by_whoever_connects(
    clean_redis: str, tables: Tables
) -> None:
    """As after a fail-over to a standby that was behind, at a start and while it runs."""
    net = Network()
    relays: dict[str, Any] = {"relay_hosts": ("relay.test",)}
    losses = "indexer_database_losses_total"
    posts = [net.post("ann") for _ in range(3)]
    feed(clean_redis, *posts)
    add(clean_redis, LABEL_LIVE, labels=orjson.dumps({"seq": 1, "labels": [LABEL]}))
    async with indexing(clean_redis, tables.url, **relays) as worker:
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
        await eventually(lambda: not entries(clean_redis, LABEL_LIVE))
        assert worker.metric(losses) == 0
    marks = "SELECT stream, number FROM rsky_pipeline.applied_mark"
    assert dict(tables.database.query(marks)).keys() == {FIREHOSE_LIVE, LABEL_LIVE}
    # A new start on the same database finds nothing wrong.
    async with indexing(clean_redis, tables.url, **relays) as worker:
        await worker.ready.wait()
        assert worker.metric(losses) == 0
        # The server is another one, which lacks the newest batch of labels.
        lose = (
            "UPDATE rsky_pipeline.applied_mark SET number = number - 1, "
            "reached = '2026-01-02T03:04:05Z' WHERE stream = 'label_live'"
        )
        execute(tables.url, lose)
        execute(
            tables.url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'rsky-pipeline test-indexer-1'",
        )
        feed(clean_redis, net.post("bob"))
        await eventually(lambda: worker.metric(losses) == 1)
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
    [gap] = entries(clean_redis, "rsky_pipeline:gaps")
    noted = orjson.loads(gap[b"gap"])
    assert (noted["host"], noted["kind"]) == ("relay.test", "database_lost")
    assert noted["from_time"].startswith("2026-01-02T03:04:05")
    with redis_client(clean_redis) as client:
        assert float(client.hget("rsky_pipeline:read_again", "since")) == 1767323045.0
    # It is noticed once; and a database without any marks is behind as well.
    async with indexing(clean_redis, tables.url, **relays) as worker:
        await worker.ready.wait()
        assert worker.metric(losses) == 0
    execute(tables.url, "DELETE FROM rsky_pipeline.applied_mark")
    async with indexing(clean_redis, tables.url, **relays) as worker:
        await worker.ready.wait()
        assert worker.metric(losses) == 1


async def test_a_batch_of_which_a_part_is_refused_is_no_loss(
    clean_redis: str, tables: Tables
) -> None:
    """Its last transaction was rolled back, and its number with it."""
    execute(tables.url, REFUSE_LIKES)
    net = Network()
    post = net.post("ann")
    feed(clean_redis, post, net.like("bob", post))
    async with indexing(clean_redis, tables.url):
        await eventually(lambda: entries(clean_redis, f"{FIREHOSE_LIVE}_dlq"))
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
    async with indexing(clean_redis, tables.url) as worker:
        await worker.ready.wait()
        assert worker.metric("indexer_database_losses_total") == 0


REFUSE_LIKES = """
CREATE FUNCTION bsky.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'this row is refused' USING ERRCODE = '21000';
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON bsky."like" FOR EACH ROW EXECUTE FUNCTION bsky.refuse();
"""
