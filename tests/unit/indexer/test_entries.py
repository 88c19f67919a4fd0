"""Reading entries: what they say, or why they cannot be indexed. Nothing else comes out."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.collections.fields import InvalidRecordError
from rsky_pipeline.indexer.collections.registry import SelectedCollections
from rsky_pipeline.indexer.collections.values import Delete, Put, Rows
from rsky_pipeline.indexer.core.entries import AccountChange, RepoRev, now_text, read_entry
from rsky_pipeline.indexer.core.labels import read_labels

NOW = "2026-01-01T00:00:00.000Z"
CID = "bafyrei" + "a" * 52
EVENT: dict[str, Any] = {
    "type": "create", "seq": 5, "time": "2024-05-05T10:00:00.123456Z", "did": "did:plc:ann",
    "commit": CID, "rev": "3ke6kgo2eq222", "collection": "app.bsky.feed.post",
    "rkey": "3ke6kgo2eq222", "cid": CID,
    "record": {"$type": "app.bsky.feed.post", "text": "x", "createdAt": "2024-05-05T10:00:00Z"},
}  # fmt: skip
REFERENCE = {"uri": "at://did:plc:bob/app.bsky.feed.post/1", "cid": CID}
LIKE = {"subject": REFERENCE, "createdAt": "2024-05-05T10:00:00Z"}


def reading_of(**changes: Any) -> Any:
    payload = orjson.dumps({**EVENT, **changes})
    return read_entry({b"event": payload}, registry.load())


def refusal_of(collection: str, record: dict[str, Any], **changes: Any) -> str | None:
    typed = {"$type": collection, **record}
    reading = reading_of(collection=collection, record=typed, **changes)
    return None if reading.refused is None else str(reading.refused.reason)


def test_a_record_becomes_a_put() -> None:
    reading = reading_of()
    assert isinstance(reading.change, Put)
    assert reading.change.uri == "at://did:plc:ann/app.bsky.feed.post/3ke6kgo2eq222"
    assert reading.change.indexed_at == "2024-05-05T10:00:00.123Z"
    assert orjson.loads(reading.change.json) == EVENT["record"]
    assert reading.rev == RepoRev("did:plc:ann", CID, EVENT["rev"])
    assert (reading.kind, reading.collection, reading.historical) == (
        "create", "app.bsky.feed.post", False,
    )  # fmt: skip


def test_history_moves_no_rev() -> None:
    reading = reading_of(seq=-1)
    assert reading.historical
    assert reading.rev is None
    assert isinstance(reading.change, Put)
    assert reading.change.historical


def test_other_events() -> None:
    gone = reading_of(type="delete", record=None, cid=None)
    assert isinstance(gone.change, Delete)
    closing = reading_of(type="repo", seq=-1)
    assert closing.change == RepoRev("did:plc:ann", CID, EVENT["rev"])
    account = reading_of(type="account", active=False, status="Deactivated")
    assert account.change == AccountChange(
        "did:plc:ann", 5, "2024-05-05T10:00:00.123Z", "deactivated"
    )


def test_a_time_that_cannot_be_read_is_now() -> None:
    before = now_text()
    assert before <= reading_of(time="when?").time <= now_text()


def test_unknown_collections_only_move_the_rev() -> None:
    reading = reading_of(collection="app.bsky.un.known", rkey="whatever / it is")
    assert reading.change is None
    assert reading.refused is None
    assert reading.collection == ""
    assert reading.rev is not None


def test_settings_select_collections() -> None:
    assert SelectedCollections(["app.bsky.feed.like"]).keys() == {"app.bsky.feed.like"}
    assert SelectedCollections(["chat.bsky."]).keys() == {"chat.bsky.actor.declaration"}
    assert SelectedCollections(["app.bsky"]) == {}
    assert len(SelectedCollections(["app.", "chat.", "com."])) == 20


@pytest.mark.parametrize(
    ("nsid", "selected"),
    [
        ("site.standard.document", True),
        ("site.standard.graph.subscription", True),
        ("com.example.thing", True),
        ("app.bsky.feed.new", False),
        ("app.bsky.feed.named", True),
        ("app.bsky.own.thing", True),
        ("site.standardx.document", False),
        ("site.standard", False),
        ("site.standard.no-name", False),
        ("site.standard.", False),
        ("com.example.thing.more", False),
        ("com.example.things", False),
        ("chat.bsky.actor.declaration", False),
    ],
)
def test_records_of_any_selected_nsid_are_kept_in_record_alone(nsid: str, selected: bool) -> None:
    collections = SelectedCollections(
        ["app.bsky.", "site.standard.", "com.example.thing", "app.bsky.feed.named", "app.bsky.own."]
    )
    names = set(collections)
    record = {"$type": nsid, "any": [1, {"thing": None}]}
    event = EVENT | {"collection": nsid, "record": record}
    change = read_entry({b"event": orjson.dumps(event)}, collections).change
    assert (nsid in collections) is (collections.get(nsid) is not None) is selected
    if selected:
        assert isinstance(change, Put)
        assert change.rows == Rows()
        assert orjson.loads(change.json) == record
    else:
        assert change is None
    assert set(collections) == names  # strangers cannot make it grow


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"did": "ann"}, "invalid_did"),
        ({"did": "did:plc:" + "a" * 400}, "invalid_did"),
        ({"rev": "zzzzzzzzzzzzz"}, "invalid_rev"),
        ({"rev": "a\0"}, "invalid_rev"),
        ({"commit": "\0"}, "invalid_cid"),
        ({"cid": ""}, "invalid_cid"),
        ({"cid": "a b"}, "invalid_cid"),
        ({"rkey": ".."}, "invalid_rkey"),
        ({"rkey": "a\0"}, "invalid_rkey"),
        ({"type": "dance"}, "unknown_type"),
        ({"record": None}, "missing_field"),
        ({"seq": "5"}, "invalid_field"),
        ({"record": {"$type": "app.bsky.feed.like", "text": "x"}}, "wrong_type"),
    ],
)
def test_entries_that_cannot_be_indexed(changes: dict[str, Any], reason: str) -> None:
    reading = reading_of(**changes)
    assert reading.change is None
    assert reading.refused is not None
    assert reading.refused.reason == reason


def test_a_record_nested_too_deep_is_refused() -> None:
    deep = orjson.dumps(EVENT).replace(b'"x"', b'"x","y":' + b"[" * 400 + b"]" * 400)
    reading = read_entry({b"event": deep}, registry.load())
    assert reading.refused is not None
    assert reading.refused.reason == "too_deep"


POST = {"text": "x", "createdAt": "2024-05-05T10:00:00Z"}


def embedding(**fields: Any) -> dict[str, Any]:
    return {**POST, "embed": fields}


@pytest.mark.parametrize(
    ("collection", "record", "reason"),
    [
        ("app.bsky.feed.post", {"text": "x"}, "missing_field"),
        ("app.bsky.feed.post", {**POST, "createdAt": 5}, "wrong_type"),
        ("app.bsky.feed.post", {**POST, "text": "é" * 1_501}, "too_long"),
        ("app.bsky.feed.post", {**POST, "langs": ["a", "b", "c", "d"]}, "too_many_items"),
        ("app.bsky.feed.post", {**POST, "tags": [5]}, "wrong_type"),
        ("app.bsky.feed.post", {**POST, "reply": {"root": REFERENCE}}, "missing_field"),
        ("app.bsky.feed.post", embedding(images=[]), "missing_field"),
        ("app.bsky.feed.post", {**POST, "embed": []}, "wrong_type"),
        ("app.bsky.feed.like", {**LIKE, "subject": "x"}, "wrong_type"),
        ("app.bsky.feed.like", {**LIKE, "subject": {**REFERENCE, "uri": "x"}}, "invalid_uri"),
        ("app.bsky.feed.like", {**LIKE, "subject": {**REFERENCE, "cid": "a\0"}}, "invalid_cid"),
        (
            "app.bsky.feed.like",
            {**LIKE, "subject": {**REFERENCE, "uri": "at://" + "a" * 1_600}},
            "too_long",
        ),
        (
            "app.bsky.feed.like",
            {**LIKE, "subject": {**REFERENCE, "uri": "at://a\0"}},
            "invalid_uri",
        ),
        ("app.bsky.graph.list", {**POST, "name": "", "purpose": "x"}, "too_short"),
        ("app.bsky.graph.verification", {**POST, "handle": "no"}, "invalid_handle"),
        ("app.bsky.actor.profile", {"avatar": {"ref": 5}}, "invalid_blob"),
    ],
)
def test_records_that_cannot_be_indexed(
    collection: str, record: dict[str, Any], reason: str
) -> None:
    changes = {"rkey": "self"} if collection.endswith("profile") else {}
    assert refusal_of(collection, record, **changes) == reason


@pytest.mark.parametrize(
    "record",
    [
        {**POST, "text": ""},
        {**POST, "embed": {"$type": "com.example.embed"}},
        {**POST, "embed": {"$type": "app.bsky.embed.images", "images": []}},
        {**POST, "embed": {"$type": "app.bsky.embed.gallery", "items": [{"$type": "x"}]}},
        {**POST, "unknown": {"x": [1]}},
    ],
)
def test_records_that_the_official_indexer_could_index_too(record: dict[str, Any]) -> None:
    assert refusal_of("app.bsky.feed.post", record, rkey="no-tid") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.just(REFERENCE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["text", "createdAt", "subject", "reply", "embed", "facets", "langs", "tags", "via", "list",
     "name", "purpose", "avatar", "post", "did", "displayName", "handle", "$type",
     "descriptionFacets", "joinedViaStarterPack"]
)  # fmt: skip


@given(
    collection=st.sampled_from(sorted(registry.load())),
    record=st.dictionaries(KEYS, JSON, max_size=8),
    rkey=st.sampled_from(["self", "3ke6kgo2eq222"]),
)
def test_no_record_raises(collection: str, record: dict[str, Any], rkey: str) -> None:
    reading = reading_of(collection=collection, record=record, rkey=rkey)
    assert (reading.change is None) == (reading.refused is not None)


@given(body=st.dictionaries(st.sampled_from(sorted(EVENT)), JSON))
def test_no_event_raises(body: dict[str, Any]) -> None:
    reading_of(**body)


@given(payload=st.binary(max_size=40))
def test_no_bytes_raise(payload: bytes) -> None:
    assert read_entry({b"event": payload}, registry.load()).refused is not None
    assert read_labels({b"labels": payload}).refused
    assert read_entry(None, registry.load()).refused is not None
    assert read_entry({b"other": payload}, registry.load()).refused is not None


def label(**changes: Any) -> Any:
    fields = {"src": "did:plc:lab", "uri": "did:plc:ann", "val": "spam", "cts": "2024-01-01"}
    return read_labels({b"labels": orjson.dumps({"seq": 1, "labels": [{**fields, **changes}]})})


def test_labels_are_normalised() -> None:
    (found,) = label(cts="2024-01-01T01:00:00+01:00", exp="2025-01-01T00:00:00Z", neg=True).labels
    assert (found.cts, found.exp) == ("2024-01-01T00:00:00.000Z", "2025-01-01T00:00:00.000Z")
    assert (found.cid, found.neg) == ("", True)


@pytest.mark.parametrize(
    "changes",
    [
        {"src": "lab"}, {"uri": "https://x"}, {"val": ""}, {"val": "x" * 129}, {"cts": "soon"},
        {"exp": ""}, {"uri": "at://" + "x" * 1_600}, {"val": "a\0"}, {"src": None},
    ],
)  # fmt: skip
def test_labels_that_cannot_be_stored(changes: dict[str, Any]) -> None:
    found = label(**changes)
    assert found.labels == ()
    assert len(found.refused) == 1


def test_texts_of_a_post_are_limited_in_bytes() -> None:
    """Two hundred characters of four bytes each are more than 640 bytes."""
    read = registry.load()["app.bsky.feed.post"].read
    put = Put("at://did:plc:ann/app.bsky.feed.post/1", "did:plc:ann", "1", CID, "", NOW, False, "")
    for tag, reason in (("\U0001f600" * 160, None), ("\U0001f600" * 161, "too_long")):
        record = {**EVENT["record"], "tags": [tag]}
        if reason is None:
            read(put, record)
        else:
            with pytest.raises(InvalidRecordError) as error:
                read(put, record)
            assert error.value.reason == reason
