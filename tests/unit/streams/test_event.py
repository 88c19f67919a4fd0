"""The wire forms of stream entries."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.streams.event import (
    AccountEvent,
    IdentityEvent,
    MalformedEvent,
    RecordEvent,
    RepoEvent,
    RepoJob,
    decode_event,
    decode_labels,
    decode_repo_job,
    encode_event,
    encode_labels,
    encode_record_event,
    encode_repo_job,
)
from rsky_pipeline.streams.names import cursor_key

LINK = Cid.of(b"block")
HEAD: dict[str, Any] = {
    "seq": 7,
    "time": "2026-01-02T03:04:05.678Z",
    "did": "did:plc:abc",
    "commit": str(LINK),
    "rev": "3jzfcijpj2z2a",
    "collection": "app.bsky.feed.like",
    "rkey": "3jzfcijpj2z2b",
}


def test_a_create_has_the_original_form() -> None:
    payload = encode_record_event(
        "create", **HEAD, cid=str(LINK), record={"blob": LINK, "key": b"\x01\x02"}
    )
    assert json.loads(payload) == HEAD | {
        "type": "create",
        "cid": str(LINK),
        "record": {"blob": {"$link": str(LINK)}, "key": {"$bytes": "AQI"}},
    }
    event = decode_event(payload)
    assert isinstance(event, RecordEvent)
    assert event.uri == "at://did:plc:abc/app.bsky.feed.like/3jzfcijpj2z2b"
    assert not event.historical


def test_a_delete_has_neither_cid_nor_record() -> None:
    payload = encode_record_event("delete", **HEAD)
    assert json.loads(payload) == HEAD | {"type": "delete"}
    event = decode_event(payload)
    assert isinstance(event, RecordEvent)
    assert (event.cid, event.record) == (None, None)


@pytest.mark.parametrize(
    "event",
    [
        RepoEvent(-1, "2026-01-02T03:04:05.678Z", "did:plc:abc", "bafy", "3jz"),
        AccountEvent(3, "2026-01-02T03:04:05.678Z", "did:plc:abc", False, "deactivated"),
        AccountEvent(3, "2026-01-02T03:04:05.678Z", "did:plc:abc", True, None),
        IdentityEvent(3, "2026-01-02T03:04:05.678Z", "did:plc:abc", None),
    ],
)
def test_other_events_come_back(event: RepoEvent | AccountEvent | IdentityEvent) -> None:
    assert decode_event(encode_event(event)) == event


def test_a_missing_or_negative_seq_means_history() -> None:
    body = HEAD | {"type": "delete"}
    del body["seq"]
    for changed in (body, body | {"seq": -2}):
        event = decode_event(json.dumps(changed).encode())
        assert isinstance(event, RecordEvent)
        assert event.historical


def test_a_repo_job_comes_back_and_tolerates_missing_status() -> None:
    job = RepoJob("did:plc:abc", "https://relay.example", "3jz", "deactivated", False)
    assert decode_repo_job(encode_repo_job(job)) == job
    short = decode_repo_job(b'{"did":"did:plc:abc","host":"https://r","rev":"3jz","active":true}')
    assert short == RepoJob("did:plc:abc", "https://r", "3jz", None, True)


def test_both_shapes_of_labels_are_read() -> None:
    label: dict[str, Any] = {"src": "did:plc:l", "uri": "at://x", "val": "spam", "cts": "2026"}
    frame = decode_labels({b"labels": encode_labels(5, [label | {"neg": True, "sig": b"\x00"}])})
    single = decode_labels({b"event": json.dumps({"type": "label", "label": label}).encode()})
    assert [(item.seq, item.neg, item.cid, item.exp) for item in frame] == [(5, True, "", None)]
    assert [(item.seq, item.neg, item.val) for item in single] == [(-1, False, "spam")]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'{"type":"boo","time":"t","did":"d"}', "unknown_type"),
        (b'{"type":"delete","seq":"1"}', "invalid_field"),
        (b'{"type":"delete","seq":1}', "missing_field"),
        (b'{"type":"account","time":"t","did":"d"}', "missing_field"),
    ],
)
def test_malformed(payload: bytes, reason: str) -> None:
    with pytest.raises(MalformedEvent) as error:
        decode_event(payload)
    assert error.value.reason == reason


@given(st.binary(max_size=80))
@settings(max_examples=200)
def test_garbage_is_malformed_and_nothing_worse(payload: bytes) -> None:
    for read in (decode_event, decode_repo_job, lambda data: decode_labels({b"labels": data})):
        with pytest.raises(MalformedEvent):
            read(payload)


@pytest.mark.parametrize(
    "host", ["relay.example", "https://relay.example", "WSS://Relay.Example:443/"]
)
def test_a_host_has_one_cursor_key(host: str) -> None:
    assert cursor_key("firehose_live", host) == "firehose_live:cursor:relay.example"


def test_other_ports_are_other_hosts() -> None:
    assert cursor_key("s", "ws://127.0.0.1:2583") == "s:cursor:127.0.0.1:2583"
    assert cursor_key("s", "ws://host:80") == "s:cursor:host"
