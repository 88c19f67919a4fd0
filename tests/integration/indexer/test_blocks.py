"""Blocked accounts and collections are not written, whatever is queued, and come back."""

from typing import Any

import pytest

from rsky_pipeline.configuration.selection import Selection
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.selection import (
    Block,
    add_accounts,
    add_blocks,
    forget_blocks,
    lift_blocks,
    list_blocks,
    load_selection,
    wait_for_writers,
)
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, FIREHOSE_LIVE
from rsky_pipeline.streams.selection import SELECTION
from tests.integration.indexer.kit import Network, Tables, account, did_of, identity, repo, state
from tests.integration.indexer.worker import GROUP, entries, eventually, feed, indexing
from tests.stores import redis_client

ANN = Block("account", did_of("ann"), reason="spam")
LIKES = Block("collection", "app.bsky.feed.like")


def creators(tables: Tables) -> set[str]:
    return {did for (did,) in tables.rows("record", "did")}


def published(redis_url: str) -> dict[bytes, bytes]:
    with redis_client(redis_url) as client:
        found: dict[bytes, bytes] = client.hgetall(SELECTION + GROUP)
        return found


async def applied(redis_url: str) -> None:
    await eventually(
        lambda: not entries(redis_url, FIREHOSE_LIVE) and not entries(redis_url, FIREHOSE_BACKFILL)
    )


def test_blocks_are_kept_with_a_version(tables: Tables) -> None:
    database = tables.database
    assert load_selection(database) == Selection()
    add_blocks(database, [ANN, LIKES, Block("host", "pds.test")])
    add_accounts(database, "pds.test", [did_of("bob")])
    found = load_selection(database)
    assert found.version == 2
    assert (set(found.accounts), set(found.hosts)) == ({did_of("ann")}, {"pds.test"})
    assert (found.collections, set(found.queued)) == (("app.bsky.feed.like",), {did_of("bob")})
    (since,) = (each.since for each in list_blocks(database) if each.kind == "host")
    assert since is not None
    assert found.queued[did_of("bob")] == pytest.approx(since.timestamp() + 30)
    lift_blocks(database, [Block("host", "pds.test"), ANN])
    found = load_selection(database)
    assert found == Selection(3, collections=("app.bsky.feed.like",))
    add_blocks(database, [ANN])  # again: the mark of the lifted one must not remove it
    with database.transaction() as tx:
        forget_blocks(tx, [Block("host", "pds.test"), ANN])
    left = {(each.kind, each.subject) for each in list_blocks(database)}
    assert left == {("account", did_of("ann")), ("collection", "app.bsky.feed.like")}
    assert database.query("SELECT FROM rsky_pipeline.blocked_account") == []


def test_rows_that_a_block_has_purged_are_remembered_until_they_are_back(tables: Tables) -> None:
    """Lifting has to fetch the repo, whatever later commands said about rows."""
    account, database = did_of("ann"), tables.database

    def rows_after(*rows: str) -> list[str]:
        for each in rows:
            add_blocks(database, [Block("account", account, each)])
        return [block.rows for block in list_blocks(database)]

    assert rows_after("keep", "takedown") == ["takedown"]
    assert rows_after("purge", "keep") == ["purge"]
    lift_blocks(database, [Block("account", account)])
    assert rows_after("keep") == ["purge"], "lifting was not finished"
    lift_blocks(database, [Block("account", account)])
    with database.transaction() as tx:
        forget_blocks(tx, [Block("account", account)])
    assert rows_after("keep") == ["keep"]


def test_a_deleted_version_is_made_again(tables: Tables) -> None:
    tables.database.execute("DELETE FROM rsky_pipeline.selection")
    assert load_selection(tables.database).version == 0
    add_blocks(tables.database, [ANN])
    assert load_selection(tables.database).version == 1


def test_transactions_that_began_before_are_waited_for(tables: Tables) -> None:
    assert wait_for_writers(tables.database, 0.0)
    with Database.connect(tables.url, name="other") as other, other.transaction() as tx:
        tx.execute("INSERT INTO rsky_pipeline.block (kind, subject) VALUES ('account', 'x')")
        assert not wait_for_writers(tables.database, 0.3)
    assert wait_for_writers(tables.database, 30.0)


async def test_nothing_of_a_blocked_account_is_written(
    clean_redis: str, tables: Tables, net: Network
) -> None:
    """Neither what was queued before the block, nor with the worker that began before it."""
    history = Network(history=True)
    theirs = net.post("bob")
    async with indexing(clean_redis, tables.url) as worker:
        feed(clean_redis, theirs, net.post("ann"))
        await applied(clean_redis)
        assert creators(tables) == {did_of("ann"), did_of("bob")}
        before = state(tables)
        add_blocks(tables.database, [ANN])
        bad = net.put("ann", "app.bsky.feed.post", {"text": 1})
        feed(clean_redis, net.post("ann"), net.like("ann", theirs), bad, identity("ann", 90),
             net.delete(theirs), net.follow("bob", "ann"))  # fmt: skip
        feed(clean_redis, history.post("ann"), repo("ann", 91, complete=True),
             stream=FIREHOSE_BACKFILL)  # fmt: skip
        await applied(clean_redis)
        await eventually(lambda: b"version" in published(clean_redis))
    assert entries(clean_redis, f"{FIREHOSE_LIVE}_dlq") == []
    assert worker.metric("indexer_blocked_events_total", kind="account") == 6
    assert worker.metric("indexer_blocked_events_total", kind="host") == 0
    own = f"did = '{did_of('ann')}'"
    assert [row for row in before["record"] if row["did"] == did_of("ann")] == [
        row for row in tables.dicts("record") if row["did"] == did_of("ann")
    ]
    assert tables.rows("actor_sync", "did", own) == [(did_of("ann"),)]
    assert tables.database.query("SELECT FROM rsky_pipeline.repo_floor") == []
    assert tables.profile_counts("ann") == (1, 0, 1), "others go on following"
    assert tables.rows("like") == []


async def test_an_unknown_account_that_is_blocked_gets_no_row(
    clean_redis: str, tables: Tables, net: Network
) -> None:
    add_blocks(tables.database, [ANN])
    async with indexing(clean_redis, tables.url):
        feed(clean_redis, identity("ann"), account("ann", 2, True), net.post("ann"))
        await applied(clean_redis)
        feed(clean_redis, account("ann", 3, False, "deactivated"), net.post("bob"))
        await applied(clean_redis)
    assert [did for (did,) in tables.rows("actor", "did")] == [did_of("bob")]
    assert tables.database.query("SELECT did FROM rsky_pipeline.account_event") == []


async def test_a_blocked_account_that_is_deactivated_is_hidden(
    clean_redis: str, tables: Tables, net: Network
) -> None:
    tables.apply(net.post("ann"))
    add_blocks(tables.database, [ANN])
    async with indexing(clean_redis, tables.url):
        feed(clean_redis, account("ann", 5, False, "deactivated"))
        await applied(clean_redis)
    assert tables.rows("actor", 'did, "upstreamStatus"') == [(did_of("ann"), "deactivated")]


async def test_a_lifted_block_leaves_nothing_out(
    clean_redis: str, tables: Tables, net: Network
) -> None:
    """Also where the worker has seen nothing since, and where nothing else is in the batch."""
    add_blocks(tables.database, [ANN, LIKES])
    async with indexing(clean_redis, tables.url) as worker:
        first, second = net.post("ann"), net.post("ann")
        feed(clean_redis, first)
        await applied(clean_redis)
        lift_blocks(tables.database, [ANN])
        feed(clean_redis, second)
        await applied(clean_redis)
    assert tables.rows("record", "uri") == [(second.uri,)]
    assert worker.metric("indexer_blocked_events_total", kind="account") == 1


async def test_a_blocked_collection_is_left_out_and_its_commits_count(
    clean_redis: str, tables: Tables, net: Network
) -> None:
    theirs = net.post("bob")
    kept = net.like("ann", theirs)
    tables.apply(theirs, kept)
    add_blocks(tables.database, [LIKES, Block("collection", "app.bsky.graph.")])
    like = net.like("cyd", theirs)
    async with indexing(clean_redis, tables.url) as worker:
        feed(clean_redis, like, net.follow("cyd", "bob"), net.delete(kept), net.post("dan"))
        await applied(clean_redis)
    assert tables.rows("like", "uri") == [(kept.uri,)]
    assert tables.rows("follow") == []
    assert tables.counts(theirs) == (1, 0, 0, 0)
    assert worker.metric("indexer_blocked_events_total", kind="collection") == 3
    synced = {did for (did,) in tables.rows("actor_sync", "did")}
    assert synced == {did_of(name) for name in ("ann", "bob", "cyd", "dan")}


async def test_entries_of_a_blocked_host_that_were_queued_before_are_left_out(
    clean_redis: str, tables: Tables, net: Network
) -> None:
    feed(clean_redis, net.post("ann"), net.post("bob"))
    add_blocks(tables.database, [Block("host", "pds.test")])
    add_accounts(tables.database, "pds.test", [did_of("ann")])
    async with indexing(clean_redis, tables.url) as worker:
        await applied(clean_redis)
        sql = "UPDATE rsky_pipeline.block SET since = since - interval '1 hour'"
        tables.database.execute(sql)
        tables.database.execute("UPDATE rsky_pipeline.selection SET version = version + 1")
        moved = net.post("ann", "from another host")
        feed(clean_redis, moved)
        await applied(clean_redis)
    assert creators(tables) == {did_of("ann"), did_of("bob")}
    assert (moved.uri,) in tables.rows("record", "uri")
    assert len(tables.rows("record")) == 2
    assert worker.metric("indexer_blocked_events_total", kind="host") == 1


async def test_a_redis_that_lost_the_blocks_has_them_again(
    clean_redis: str, tables: Tables, monkeypatch: Any
) -> None:
    monkeypatch.setattr("rsky_pipeline.indexer.upkeep.WATCH_SECONDS", 0.05)
    add_blocks(tables.database, [ANN])
    async with indexing(clean_redis, tables.url):
        await eventually(lambda: published(clean_redis).get(b"version") == b"1")
        with redis_client(clean_redis) as client:
            client.delete(SELECTION + GROUP)
        await eventually(lambda: did_of("ann").encode() in published(clean_redis)[b"content"]
                         if published(clean_redis) else False)  # fmt: skip
        add_blocks(tables.database, [LIKES])
        await eventually(lambda: published(clean_redis)[b"version"] == b"2")
