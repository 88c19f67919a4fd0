"""Real frames through the whole ingester."""

import json
from collections import Counter
from typing import Any

import pytest

from rsky_pipeline.atproto.frame import (
    AccountMessage,
    CommitMessage,
    Message,
    SyncMessage,
    decode_frame,
)
from tests.data import test_data
from tests.data_frames import corpus_frames, split_frames
from tests.integration.ingester.relay import Relay, running
from tests.integration.ingester.worker import entries, eventually, ingesting, value

PREFIXES = ("app.bsky.", "chat.bsky.", "com.germnetwork.declaration")


def numbered(frames: list[bytes]) -> list[tuple[int, bytes]]:
    return [(decode_frame(raw).seq, raw) for raw in frames]  # type: ignore[union-attr, misc]


def expected_events(lines: list[str]) -> list[dict[str, Any]]:
    """Turn the events that Jetstream served into ours, without what it does not have."""
    expected = []
    for line in lines:
        event = json.loads(line)
        body = {"did": event["did"]}
        if event["kind"] == "commit":
            commit = event["commit"]
            if not commit["collection"].startswith(PREFIXES):
                continue
            names = ("rev", "collection", "rkey", "cid", "record")
            body |= {"type": commit["operation"]}
            body |= {name: commit[name] for name in names if name in commit}
        elif event["kind"] == "identity":
            identity = event["identity"]
            body |= {"type": "identity", "handle": identity.get("handle"),
                     "seq": identity["seq"], "time": identity["time"]}  # fmt: skip
        else:
            account = event["account"]
            body |= {"type": "account", "active": account["active"],
                     "status": account.get("status"), "seq": account["seq"],
                     "time": account["time"]}  # fmt: skip
        expected.append(body)
    return expected


def accounts_that_come_back(messages: list[Message]) -> int:
    """Count the accounts of which a host says that they are active after it told of commits."""
    seen, returns = set(), 0
    for message in messages:
        if isinstance(message, CommitMessage | SyncMessage):
            seen.add(message.did)
        elif isinstance(message, AccountMessage) and message.active and message.did in seen:
            returns += 1
    return returns


def sort_key(event: dict[str, Any]) -> str:
    return json.dumps([event[name] for name in ("did", "type")]) + str(event.get("rkey"))


async def test_the_real_window_gives_exactly_the_events_that_jetstream_served(
    clean_redis: str,
) -> None:
    corpus = test_data("fixtures/jetstream/corpus")
    relay = Relay(numbered(corpus_frames(corpus)))
    last = relay.frames[-1][0]
    async with running(relay), ingesting(clean_redis, relay.url) as ingester:
        key = f"firehose_live:cursor:127.0.0.1:{relay.port}"
        await eventually(lambda: value(clean_redis, key) == str(last))
        assert ingester.ready.is_set()
        assert ingester.metric("ingester_errors_total") == 0
        assert ingester.metric("ingester_firehose_messages_total") == 150
        host = f"127.0.0.1:{relay.port}"
        await eventually(
            lambda: (
                ingester.metric("ingester_cursor_seq", stream="firehose_live", host=host) == last
            )
        )

    events = [json.loads(entry[b"event"]) for entry in entries(clean_redis, "firehose_live")]
    expected = expected_events((corpus / "expected_v1.jsonl").read_text().splitlines())
    assert len(expected) > 100
    frames = {seq: decode_frame(raw) for seq, raw in relay.frames}
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)
    for event in events:
        message: Any = frames[event["seq"]]
        assert event["time"] == message.time
        if "commit" in event:
            assert event.pop("commit") == str(message.commit)
            del event["seq"], event["time"]
        if event["type"] == "account":
            assert event.pop("relay") == f"127.0.0.1:{relay.port}"
    assert sorted(events, key=sort_key) == sorted(expected, key=sort_key)
    assert not entries(clean_redis, "repo_backfill_high")


@pytest.mark.slow
async def test_the_recorded_official_network_passes_without_an_error(clean_redis: str) -> None:
    raw = test_data("recorded/firehose.frames").read_bytes()
    relay = Relay(numbered(split_frames(raw, ">I")))
    messages = [decode_frame(frame) for _, frame in relay.frames]
    kinds = Counter(type(message).__name__ for message in messages)
    key = "firehose_live:cursor:127.0.0.1:"
    async with running(relay), ingesting(clean_redis, relay.url) as ingester:
        last = str(relay.frames[-1][0])
        await eventually(lambda: value(clean_redis, f"{key}{relay.port}") == last, 60)
        total = len(entries(clean_redis, "firehose_live"))
        # The counter moves when the reply has come, a moment after the store has the events.
        await eventually(lambda: ingester.metric("ingester_stream_events_total") == total, 10)
        assert ingester.metric("ingester_errors_total") == 0
        assert ingester.metric("ingester_resyncs_total", reason="broken_chain") == 0
        syncs = ingester.metric("ingester_resyncs_total", reason="sync")
        reactivated = ingester.metric("ingester_resyncs_total", reason="reactivated")
        replays = ingester.metric("ingester_replayed_frames_total", host=f"127.0.0.1:{relay.port}")
        written = ingester.metric("ingester_stream_events_total")

    types = Counter(json.loads(e[b"event"])["type"] for e in entries(clean_redis, "firehose_live"))
    assert types["identity"] == kinds["IdentityMessage"] == 60
    assert types["account"] == kinds["AccountMessage"] == 62
    assert set(types) == {"create", "update", "delete", "identity", "account"}
    assert written == sum(types.values())
    # A new account's first commit is followed by a #sync of the same rev, which says nothing new.
    jobs = [json.loads(entry[b"repo"]) for entry in entries(clean_redis, "repo_backfill_high")]
    returns = accounts_that_come_back(messages)
    assert syncs == 2
    assert returns == reactivated == 5
    assert len(jobs) == syncs + returns
    assert replays + syncs == kinds["SyncMessage"] == 49
    assert {job["host"] for job in jobs} == {f"http://127.0.0.1:{relay.port}"}
