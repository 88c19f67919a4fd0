"""Switching between the Rust services and ours, forth and back: nothing is lost or repeated."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rsky_pipeline.operations.release import release
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.repo_job import REPO_FIELD, FetchReason, RepoJob, encode_repo_job
from rsky_pipeline.streams.waiting import count_waiting
from tests.consumers import GroupReader
from tests.integration.backfiller.conftest import configure, hosts, store
from tests.integration.backfiller.hosts import FakeHosts
from tests.integration.backfiller.kit import (
    Configure,
    backfiller,
    document,
    make_repo,
    settled,
)
from tests.integration.compatibility import rust
from tests.integration.indexer.conftest import tables
from tests.integration.indexer.kit import Tables, cid_of, rev_of
from tests.integration.indexer.worker import entries, eventually, indexing
from tests.integration.ingester.relay import Relay, like, running
from tests.integration.ingester.worker import ingesting, value
from tests.integration.streams.support import pending_count
from tests.stores import redis_client

__all__ = ["configure", "hosts", "store", "tables"]
DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


def added(redis_url: str, stream: str) -> int:
    """Return how many entries were ever appended to a stream."""
    with redis_client(redis_url) as client:
        found: Any = client.xinfo_stream(stream)
    return int(found["entries-added"])


def cursor_is(redis_url: str, host: str, seq: int) -> bool:
    return value(redis_url, f"firehose_live:cursor:{host}") == str(seq)


async def test_ingesters_and_indexers_take_over_from_each_other(
    clean_redis: str, tables: Tables
) -> None:
    events = {seq: rust.like_event(seq, DID, rev_of(seq), cid_of("x")) for seq in range(1, 41)}
    relay = Relay()

    def upto(last: int) -> dict[int, bytes]:
        relay.add(*((seq, like(seq, rev=rev_of(seq)))
                    for seq in range(len(relay.frames) + 1, last + 1)))  # fmt: skip
        return {seq: events[seq] for seq in range(1, last + 1)}

    with redis_client(clean_redis) as client:
        async with running(relay):
            host = f"127.0.0.1:{relay.port}"
            theirs = rust.Ingester(client, host)
            reader = rust.Consumer(client, rust.LIVE, rust.FIREHOSE_GROUP, "indexer_1", "event")
            # They begin; their indexer dies with two entries in its hands.
            theirs.write(upto(10))
            reader.run(at_most=4, die_holding=2)
            assert [event["seq"] for event in reader.processed] == [1, 2, 3, 4]
            # We take over: from their cursor, their group, and what their consumer still held.
            for last in (20, 40):
                async with (
                    ingesting(clean_redis, relay.url),
                    indexing(clean_redis, tables.url, claim_idle_seconds=1),
                ):
                    upto(last)
                    await eventually(partial(cursor_is, clean_redis, host, last))
                    await eventually(lambda: not entries(clean_redis, rust.LIVE))
                if last == 20:  # back to them in between
                    assert theirs.cursor() == 20
                    theirs.write(upto(30))
                    reader.run()
    assert relay.cursors == [10, 30]
    theirs_did = [event["seq"] for event in reader.processed]
    ours_did = {int(uri.rpartition("/k")[2]) for (uri,) in tables.rows("like", "uri")}
    assert theirs_did == [*range(1, 5), *range(21, 31)]
    assert ours_did == {*range(5, 21), *range(31, 41)}
    assert added(clean_redis, rust.LIVE) == 40
    assert entries(clean_redis, f"{rust.LIVE}_dlq") == []


async def test_backfillers_take_over_from_each_other(
    clean_redis: str, store: Store, configure: Configure, hosts: FakeHosts
) -> None:
    dids = [f"did:plc:{letter}" for letter in "abcdef"]
    for did in dids:
        car, _ = make_repo(did, 5)
        hosts.add(did, document(did), car)
    with redis_client(clean_redis) as client:
        for did in dids:
            client.xadd(rust.REPOS, {"repo": rust.job(did)})
        theirs = rust.Consumer(client, rust.REPOS, rust.REPO_GROUP, "backfiller1", "repo")
        theirs.run(at_most=2, die_holding=1)
        async with backfiller(configure(claim_idle_seconds=1)):
            await settled(store, 60)
        closed = {event["did"] for event in output(clean_redis) if event["type"] == "repo"}
        assert [job["did"] for job in theirs.processed] == dids[:2]
        assert closed == set(dids[2:])


def output(redis_url: str) -> list[dict[str, Any]]:
    return [rust.read_event(entry[b"event"]) for entry in entries(redis_url, rust.BACKFILL)]


@pytest.mark.parametrize("dry_run", [True, False])
def test_going_back_leaves_all_work_where_they_find_it(
    clean_redis: str, store: Store, configure: Configure, tmp_path: Path, dry_run: bool
) -> None:
    streams = ("repo_backfill", "repo_backfill_high", "repo_backfill_low")
    for stream in streams:
        jobs = [RepoJob(f"did:plc:{stream}{n}", "https://h", "3jzfcijpj2z2a", None, True,
                        reason=FetchReason.GAP)
                for n in range(4)]  # fmt: skip
        append(store, [Entry(stream, REPO_FIELD, encode_repo_job(job)) for job in jobs])
        ours = GroupReader(store, stream, rust.REPO_GROUP, "ours")
        ours.ensure()
        _, waiting = ours.read_new(2, 0)  # one stays in the hands of a consumer of ours
        assert ours.postpone(waiting, seconds=600, field=REPO_FIELD,
                        payload=(waiting.fields or {})[REPO_FIELD])  # fmt: skip
    live = GroupReader(store, rust.LIVE, rust.FIREHOSE_GROUP, "ours")
    live.ensure()
    events = [rust.like_event(seq, DID, rev_of(seq), cid_of("x")) for seq in (1, 2)]
    append(store, [Entry(rust.LIVE, b"event", event) for event in events])
    assert len(live.read_new(1, 0)) == 1
    moved = release(store, configure(), dry_run=dry_run)
    assert {(item.source, item.why, item.count) for item in moved} >= {(rust.LIVE, "pending", 1)}
    with redis_client(clean_redis) as client:
        theirs = rust.Consumer(client, rust.REPOS, rust.REPO_GROUP, "backfiller1", "repo")
        theirs.run()
        reader = rust.Consumer(client, rust.LIVE, rust.FIREHOSE_GROUP, "indexer_1", "event")
        reader.run()
    found = sorted(job["did"] for job in theirs.processed)
    if dry_run:
        assert len(found) == 2
        assert count_waiting(store) == 3
        return
    assert found == sorted(f"did:plc:{stream}{n}" for stream in streams for n in range(4))
    assert count_waiting(store) == 0
    assert sorted(event["seq"] for event in reader.processed) == [1, 2]
    assert release(store, configure()) == []


def test_an_entry_of_more_fields_than_a_script_can_move_stays_alone(
    store: Store, configure: Configure
) -> None:
    wide = [text for number in range(20_000) for text in (f"field{number}", "x")]
    for stream in ("repo_backfill_high", "repo_backfill"):
        store.call("XADD", stream, "1-1", *wide)
        append(store, [Entry(stream, REPO_FIELD, b"{}")] * 2)
    ours = GroupReader(store, "repo_backfill", rust.REPO_GROUP, "ours")
    ours.ensure()
    assert len(ours.read_new(3, 0)) == 3
    moved = release(store, configure())
    assert [(item.source, item.count) for item in moved] == [
        ("repo_backfill_high", 2), ("repo_backfill", 2),
    ]  # fmt: skip
    assert store.call("XLEN", "repo_backfill_high") == 1
    assert pending_count(ours) == 1
