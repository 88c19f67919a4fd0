"""The wire forms of stream entries."""

import json
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.dagjson import to_json
from rsky_pipeline.streams.event import (
    AccountEvent,
    IdentityEvent,
    MalformedEventError,
    RecordEvent,
    RepoEvent,
    decode_event,
    decode_labels,
    encode_event,
    encode_labels,
    encode_record_event,
)
from rsky_pipeline.streams.repo_job import FetchReason, RepoJob, decode_repo_job, encode_repo_job

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
        RepoEvent(-1, "2026-01-02T03:04:05.678Z", "did:plc:abc", "bafy", "3jz", complete=True),
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
    proof = replace(job, deleted=("app.bsky.feed.like/a", "app.bsky.feed.post/b"))
    assert decode_repo_job(encode_repo_job(proof)) == proof
    ours = (b"deleted", b"reason", b"attempts", b"settles")
    assert not any(key in encode_repo_job(job) for key in ours)
    again = replace(job, reason=FetchReason.SYNC, attempts=2, settles=3)
    assert decode_repo_job(encode_repo_job(again)) == again
    assert [item.forced for item in (job, proof, again)] == [False, True, True]
    with pytest.raises(MalformedEventError, match="invalid_field"):
        decode_repo_job(b'{"did":"did:plc:abc","deleted":[1]}')


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
        (b'{"time":"t","did":"d"}', "unknown_type"),
        (b'{"type":["create"],"time":"t","did":"d"}', "unknown_type"),
        (b'{"type":"delete","seq":"1"}', "invalid_field"),
        (b'{"type":"delete","seq":true}', "invalid_field"),
        (b'{"type":"delete","seq":1.5}', "invalid_field"),
        (b'{"type":"delete","seq":9223372036854775808}', "invalid_field"),
        (b'{"type":"delete","seq":-99999999999999999999}', "invalid_field"),
        (b'{"type":"delete","seq":1,"time":"\\ud800"}', "invalid_json"),
        (b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", "too_deep"),
        (b"[" * 100_000, "invalid_json"),
        (b" " * (8 * 1024 * 1024 + 1), "too_big"),
        (b'{"type":"delete","seq":1}', "missing_field"),
        (b'{"type":"account","time":"t","did":"d"}', "missing_field"),
    ],
)
def test_malformed(payload: bytes, reason: str) -> None:
    with pytest.raises(MalformedEventError) as error:
        decode_event(payload)
    assert error.value.reason == reason


def test_wide_is_not_deep() -> None:
    deep: Any = {}
    for _ in range(190):
        deep = [deep]
    record = {"wide": [{}] * 500, "deep": deep}
    body = HEAD | {"type": "create", "cid": "b", "record": record}
    event = decode_event(json.dumps(body).encode())
    assert isinstance(event, RecordEvent)
    # What was read can be written again, as whoever stores the record does.
    assert orjson.loads(orjson.dumps(event.record)) == event.record


@pytest.mark.parametrize("field", ["time", "did", "commit", "rev", "collection", "rkey", "cid"])
@pytest.mark.parametrize("value", [None, 1, [], {}, True])
def test_a_field_of_another_type_is_named(field: str, value: object) -> None:
    body = HEAD | {"type": "create", "cid": "b", "record": {}} | {field: value}
    with pytest.raises(MalformedEventError, match=field) as error:
        decode_event(json.dumps(body).encode())
    assert error.value.reason == "missing_field"


def test_a_create_needs_its_record() -> None:
    records: tuple[object, ...] = (None, [], "text")
    for record in records:
        body = HEAD | {"type": "update", "cid": "b", "record": record}
        with pytest.raises(MalformedEventError, match="record"):
            decode_event(json.dumps(body).encode())


TEXT = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
CBOR = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT | st.binary(max_size=40)
    | st.binary(max_size=9).map(Cid.of),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(record=st.dictionaries(TEXT, CBOR, max_size=4), seq=st.integers(-1, 2**63 - 1))
def test_any_record_comes_back_as_its_json_form(record: dict[str, Any], seq: int) -> None:
    payload = encode_record_event("update", **(HEAD | {"seq": seq}), cid=str(LINK), record=record)
    event = decode_event(payload)
    assert isinstance(event, RecordEvent)
    assert event.record == json.loads(to_json(record))
    expected = RecordEvent("update", **(HEAD | {"seq": seq}), cid=str(LINK), record=event.record,
                           json=orjson.dumps(event.record).decode())  # fmt: skip
    assert event == expected
    assert event.historical == (seq < 0)


RECORD = {"text": 'a "quoted" ,"record":{} in a text', "n": 1}
WRITTEN = orjson.dumps(RECORD)
START = orjson.dumps(HEAD | {"type": "create", "cid": "b"})[:-1]


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (START + b',"record":' + WRITTEN + b"}", WRITTEN.decode()),
        (START + b',"x":",\\"record\\":{}","record":' + WRITTEN + b"}", ""),
        (START + b',"record":1,"record":' + WRITTEN + b"}", WRITTEN.decode()),
        (START + b',"x":{"y":1,"record":{}},"record":' + WRITTEN + b"}", ""),
        (START + b',"x":[1,{"y":1,"record":{}}],"record":' + WRITTEN + b"}", ""),
        (START + b',"record":' + WRITTEN + b',"x":{"y":1,"record":{}}}', ""),
        (START + b', "record":' + WRITTEN + b"}", ""),
        (START + b',"record": ' + WRITTEN + b"}", ""),
        (START + b',"record":' + WRITTEN + b" }", ""),
        (START + b',"record":' + WRITTEN + b"} ", ""),
        (START + b',"record":' + WRITTEN + b',"x":"{}"}', ""),
        (START + b',"record":' + WRITTEN + b',"x":{}}', ""),
        # Keys that are written twice: the last one counts.
        (START + b',"record":{"a":1},"record":' + WRITTEN + b"}", ""),
        (START + b',"record":{"a":1},"seq":5,"record":' + WRITTEN + b"}", ""),
        (START + b',"record":{"a":1},"record" :' + WRITTEN + b"}", ""),
        (START + b',"record":{"a":1},"\\u0072ecord":' + WRITTEN + b"}", ""),
    ],
)
def test_the_text_of_a_record_is_taken_only_where_it_ends_the_event(
    payload: bytes, text: str
) -> None:
    event = decode_event(payload)
    assert isinstance(event, RecordEvent)
    assert (event.record, event.json) == (RECORD, text)


@given(
    st.dictionaries(
        st.sampled_from(
            ["type", "seq", "time", "did", "commit", "rev", "collection", "rkey", "cid", "record",
             "active", "status", "handle", "host", "labels", "label", "src", "uri", "val", "cts"]
        ),
        JSON | st.sampled_from(["create", "repo", "account", "identity", "label"]),
    )
)  # fmt: skip
@settings(max_examples=300)
def test_any_object_is_read_or_malformed(body: dict[str, Any]) -> None:
    payload = json.dumps(body).encode()
    for read in (
        decode_event,
        decode_repo_job,
        lambda data: decode_labels({b"labels": data}),
        lambda data: decode_labels({b"event": data}),
    ):
        reason = ""
        try:
            read(payload)
        except MalformedEventError as error:
            reason = error.reason
        assert reason in {"", "missing_field", "invalid_field", "unknown_type"}


def test_a_malformed_label_does_not_cost_the_others() -> None:
    good = {"src": "did:plc:l", "uri": "at://x", "val": "spam", "cts": "2026"}
    fields = {b"labels": encode_labels(5, [good, {"src": "did:plc:l"}, good | {"val": "porn"}])}
    refused: list[MalformedEventError] = []
    assert [label.val for label in decode_labels(fields, refused)] == ["spam", "porn"]
    assert [error.reason for error in refused] == ["missing_field"]
    with pytest.raises(MalformedEventError):
        decode_labels(fields)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "missing_field"),
        ({b"labels": b"{}"}, "invalid_field"),
        ({b"labels": b'{"labels":[1]}'}, "invalid_field"),
        ({b"event": b'{"type":"label"}'}, "invalid_field"),
        ({b"labels": b'{"labels":[],"seq":"x"}'}, "invalid_field"),
    ],
)
def test_malformed_labels(fields: dict[bytes, bytes], reason: str) -> None:
    with pytest.raises(MalformedEventError) as error:
        decode_labels(fields)
    assert error.value.reason == reason


@given(st.binary(max_size=80))
@settings(max_examples=200)
def test_garbage_is_malformed_and_nothing_worse(payload: bytes) -> None:
    for read in (decode_event, decode_repo_job, lambda data: decode_labels({b"labels": data})):
        with pytest.raises(MalformedEventError):
            read(payload)
