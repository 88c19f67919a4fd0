"""Entries in the exact forms of the Rust and TypeScript services are read, and ours by theirs."""

import json
from typing import Any

import pytest
import trio

from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.streams.names import FIREHOSE_BACKFILL, FIREHOSE_LIVE, LABEL_LIVE, REPO_BACKFILL
from tests.integration.backfiller.conftest import configure, hosts, store
from tests.integration.backfiller.hosts import FakeHosts
from tests.integration.backfiller.kit import Configure, backfiller, document, make_repo, settled
from tests.integration.compatibility import rust
from tests.integration.indexer.conftest import tables
from tests.integration.indexer.kit import Tables, cid_of, did_of, rev_of
from tests.integration.indexer.worker import entries, eventually, indexing
from tests.integration.ingester.relay import TIME, Relay, like, running
from tests.integration.ingester.worker import ingesting
from tests.stores import redis_client

__all__ = ["configure", "hosts", "store", "tables"]
ANN, BOB = did_of("ann"), did_of("bob")
LABELER = did_of("labeler")


def add(redis_url: str, stream: str, name: str, *payloads: bytes) -> None:
    with redis_client(redis_url) as client:
        for payload in payloads:
            client.xadd(stream, {name: payload})


def text(**body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


async def test_events_of_the_rust_services_are_indexed(clean_redis: str, tables: Tables) -> None:
    common = {"time": "2025-11-04T01:02:03.456789012+00:00", "did": ANN, "commit": cid_of("c")}
    path = {"collection": "app.bsky.actor.profile", "rkey": "self"}
    first = {"$type": "app.bsky.actor.profile", "displayName": "Ann"}
    add(
        clean_redis, FIREHOSE_LIVE, "event",
        rust.like_event(1, ANN, rev_of(1), cid_of("x")),
        rust.like_event(2, ANN, rev_of(2), cid_of("x")),
        text(type="create", seq=3, rev=rev_of(3), cid=cid_of("p1"), record=first, **common, **path),
        text(type="update", seq=4, rev=rev_of(4), cid=cid_of("p2"),
             record=first | {"displayName": "Anna"}, **common, **path),
        text(type="delete", seq=5, rev=rev_of(5), collection="app.bsky.feed.like", rkey="k1",
             **common),
        text(type="account", seq=6, time=TIME, did=BOB, active=False, status="Deactivated"),
        text(type="identity", time=TIME, did=BOB, handle=None),
        # The TypeScript services spread the whole firehose event over theirs.
        text(type="account", time=TIME, did=did_of("cyd"), active=True, status=None, event="x",
             ops=[], extra={"a": 1}),
    )  # fmt: skip
    history = {**common, "did": did_of("dan"), "rev": rev_of(9)}
    add(
        clean_redis, FIREHOSE_BACKFILL, "event",
        text(type="create", seq=-1, cid=cid_of("h"), collection="app.bsky.graph.follow", rkey="f",
             record={"$type": "app.bsky.graph.follow", "subject": ANN,
                     "createdAt": "2025-11-04T01:02:03Z"}, **history),
        text(type="repo", seq=-1, **history),
        text(type="repo", **{**history, "did": did_of("eve")}),  # TypeScript: without seq
    )  # fmt: skip
    async with indexing(clean_redis, tables.url):
        await eventually(lambda: not entries(clean_redis, FIREHOSE_LIVE))
        await eventually(lambda: not entries(clean_redis, FIREHOSE_BACKFILL))
    assert entries(clean_redis, f"{FIREHOSE_LIVE}_dlq") == []
    assert entries(clean_redis, f"{FIREHOSE_BACKFILL}_dlq") == []
    assert tables.rows("like", "uri") == [(f"at://{ANN}/app.bsky.feed.like/k2",)]
    assert tables.rows("profile", '"displayName"') == [("Anna",)]
    assert tables.rows("actor", '"upstreamStatus"', f"did = '{BOB}'") == [("deactivated",)]
    assert tables.rows("follow", "creator") == [(did_of("dan"),)]
    synced = {did for (did,) in tables.rows("actor_sync", "did")}
    assert {did_of("dan"), did_of("eve")} <= synced


async def test_labels_of_both_services_are_indexed(clean_redis: str, tables: Tables) -> None:
    # rsky-ingester writes the time as chrono displays it, and leaves out what it does not know.
    mine = {"src": LABELER, "uri": ANN, "cid": None, "val": "spam", "neg": None,
            "cts": "2025-11-04 01:02:03 UTC"}  # fmt: skip
    other = {"src": LABELER, "uri": BOB, "val": "rude", "cts": "2025-11-04T01:02:03.456Z"}
    gone = mine | {"val": "old", "neg": True, "cts": "2025-11-04 01:02:04.5 UTC"}
    add(clean_redis, LABEL_LIVE, "labels", text(seq=7, labels=[mine, gone]))
    add(clean_redis, LABEL_LIVE, "event", text(type="label", label=other))
    async with indexing(clean_redis, tables.url):
        await eventually(lambda: not entries(clean_redis, LABEL_LIVE))
    assert entries(clean_redis, f"{LABEL_LIVE}_dlq") == []
    assert tables.rows("label", "uri, val, neg, cts") == [
        (ANN, "old", True, "2025-11-04T01:02:04.500Z"),
        (ANN, "spam", False, "2025-11-04T01:02:03.000Z"),
        (BOB, "rude", False, "2025-11-04T01:02:03.456Z"),
    ]


async def test_what_the_ingester_writes_is_read_by_their_rules(clean_redis: str) -> None:
    path = "app.bsky.feed.like/k9"
    label = {"ver": 1, "src": LABELER, "uri": ANN, "val": "spam", "cts": TIME, "sig": b"s"}
    labels = encode_frame("#labels", {"seq": 1, "labels": [label, label | {"neg": True}]})
    frames = [
        like(1), like(2, ops=[{"action": "delete", "path": path, "cid": None}]),
        encode_frame("#identity", {"seq": 3, "did": ANN, "time": TIME, "handle": "ann.test"}),
        encode_frame("#identity", {"seq": 4, "did": ANN, "time": TIME}),
        encode_frame("#account", {"seq": 5, "did": ANN, "time": TIME, "active": True}),
        encode_frame("#account", {"seq": 6, "did": BOB, "time": TIME, "active": False,
                                  "status": "takendown"}),
        like(7, tooBig=True),
    ]  # fmt: skip
    relay, labeler = Relay(list(enumerate(frames, 1))), Relay([(1, labels)])
    async with (
        running(relay),
        running(labeler),
        ingesting(clean_redis, relay.url, labeler_hosts=(labeler.url,)),
    ):
        await eventually(lambda: len(entries(clean_redis, FIREHOSE_LIVE)) >= 6)
        await eventually(lambda: entries(clean_redis, LABEL_LIVE))
    events = [rust.read_event(entry[b"event"]) for entry in entries(clean_redis, FIREHOSE_LIVE)]
    kinds = [event["type"] for event in events]
    assert kinds == ["create", "delete", "identity", "identity", "account", "account"]
    (frame,) = (rust.read_labels(entry[b"labels"]) for entry in entries(clean_redis, LABEL_LIVE))
    assert [item["neg"] for item in frame["labels"]] == [None, True]
    jobs = [
        rust.read_job(entry[b"repo"])
        for stream in (REPO_BACKFILL, "repo_backfill_high")
        for entry in entries(clean_redis, stream)
    ]
    assert jobs, "a commit that is too big is fetched"


async def test_a_repo_queued_by_rust_is_backfilled_in_their_form(
    clean_redis: str, store: Any, configure: Configure, hosts: FakeHosts
) -> None:
    car, rkeys = make_repo("did:plc:a", 20)
    hosts.add("did:plc:a", document("did:plc:a"), car)
    add(clean_redis, REPO_BACKFILL, "repo", rust.job("did:plc:a"))
    async with backfiller(configure()):
        await settled(store)
    found = [rust.read_event(entry[b"event"]) for entry in entries(clean_redis, FIREHOSE_BACKFILL)]
    assert {event["rkey"] for event in found if event["type"] == "create"} == rkeys
    assert found[-1]["type"] == "repo"
    assert {event["seq"] for event in found} == {-1}
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "payload",
    [
        b'{"type":"create"}',
        b'{"type":"commit","seq":1}',
        text(type="account", time=TIME, did=ANN, active=None),
        text(type="identity", time="yesterday", did=ANN),
        text(type="delete", seq="1", time=TIME, did=ANN, commit="c", rev="r", collection="c",
             rkey="r"),
        b'{"type":"identity","time":"2025-11-04T01:02:03Z","did":"a","did":"b"}',
    ],
)  # fmt: skip
def test_their_rules_can_be_broken(payload: bytes) -> None:
    with pytest.raises(rust.Refused):
        rust.read_event(payload)
