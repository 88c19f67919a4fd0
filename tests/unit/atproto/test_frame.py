"""Frames: what the network sends, what it should not, and what it no longer sends."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import (
    MAX_FRAME,
    AccountMessage,
    CommitMessage,
    ErrorMessage,
    IdentityMessage,
    InfoMessage,
    LabelsMessage,
    RepoOp,
    SyncMessage,
    UnknownMessage,
    UnreadableCommitError,
    decode_frame,
    encode_error_frame,
    encode_frame,
)
from rsky_pipeline.atproto.syntax import rev_microseconds, tid_microseconds
from tests.data import test_data
from tests.data_frames import corpus_frames

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
REV = "3jzfcijpj2z2a"
TIME = "2026-07-04T14:38:07.517Z"
CID = Cid.of(b"block")
OTHER = Cid.of(b"another record")


def commit_body() -> dict[str, Any]:
    return {
        "seq": 5,
        "repo": DID,
        "rev": REV,
        "since": None,
        "commit": CID,
        "blocks": b"car",
        "ops": [
            {"action": "create", "path": "a.b.c/1", "cid": CID},
            {"action": "update", "path": "a.b.c/2", "cid": CID, "prev": CID},
            {"action": "delete", "path": "a.b.c/3", "cid": None, "prev": CID},
        ],
        "prevData": CID,
        "time": TIME,
        "blobs": [],
        "tooBig": False,
        "rebase": False,
    }


def test_a_commit() -> None:
    ops = (
        RepoOp("create", "a.b.c/1", CID, None),
        RepoOp("update", "a.b.c/2", CID, CID),
        RepoOp("delete", "a.b.c/3", None, CID),
    )
    assert decode_frame(encode_frame("#commit", commit_body())) == CommitMessage(
        5, DID, REV, None, CID, b"car", ops, CID, TIME, too_big=False, rebase=False
    )


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        (
            "#sync",
            {"seq": 1, "did": DID, "rev": REV, "time": TIME, "blocks": b"x"},
            SyncMessage(1, DID, REV, TIME, b"x"),
        ),
        (
            "#identity",
            {"seq": 1, "did": DID, "time": TIME, "later": 1},
            IdentityMessage(1, DID, TIME, None),
        ),
        (
            "#account",
            {"seq": 1, "did": DID, "time": TIME, "active": False, "status": "new-kind"},
            AccountMessage(1, DID, TIME, active=False, status="new-kind"),
        ),
        ("#info", {"name": "OutdatedCursor"}, InfoMessage("OutdatedCursor", None)),
        ("#labels", {"seq": 3, "labels": [{"val": "x"}]}, LabelsMessage(3, ({"val": "x"},))),
        ("#novelty", {"seq": 2, "did": DID}, UnknownMessage(1, "#novelty", 2)),
        ("#novelty", {"seq": 2**60}, UnknownMessage(1, "#novelty", None)),
        ("#novelty", {"seq": True}, UnknownMessage(1, "#novelty", None)),
    ],
)
def test_other_messages(kind: str, body: dict[str, Any], message: object) -> None:
    assert decode_frame(encode_frame(kind, body)) == message


def test_error_frames() -> None:
    raw = encode_error_frame("FutureCursor", "the cursor is ahead")
    assert decode_frame(raw) == ErrorMessage("FutureCursor", "the cursor is ahead")
    bare = cbor.encode({"op": -1}) + cbor.encode({"error": "ConsumerTooSlow"})
    assert decode_frame(bare) == ErrorMessage("ConsumerTooSlow", None)


def test_unknown_operations_are_no_errors() -> None:
    raw = cbor.encode({"op": 2, "t": "#commit"}) + cbor.encode({"seq": 9})
    assert decode_frame(raw) == UnknownMessage(2, "#commit", 9)
    raw = cbor.encode({"op": 1}) + cbor.encode({})
    assert decode_frame(raw) == UnknownMessage(1, "", None)


def test_an_empty_commit_and_the_order_of_a_header_do_not_matter() -> None:
    body = cbor.encode(commit_body() | {"ops": []})
    for header in (b"\xa2\x62op\x01\x61t\x67#commit", b"\xa2\x61t\x67#commit\x62op\x01"):
        message = decode_frame(header + body)
        assert isinstance(message, CommitMessage)
        assert message.ops == ()


_CREATE = {"action": "create", "path": "a.b.c/1", "cid": CID}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seq": -1}, "invalid_frame"),
        ({"seq": 2**53}, "invalid_frame"),
        ({"seq": True}, "invalid_frame"),
        ({"seq": None}, "invalid_frame"),
        ({"repo": "ewvi"}, "invalid_frame"),
        ({"repo": "did:plc:" + "a" * 3_000}, "invalid_frame"),
        ({"rev": "now"}, "invalid_frame"),
        ({"since": 1}, "invalid_frame"),
        ({"time": None}, "invalid_frame"),
        ({"commit": bytes(CID)[1:]}, "invalid_cid"),
        ({"commit": None}, "invalid_frame"),
        ({"prevData": str(CID)}, "invalid_frame"),
        ({"blocks": None}, "invalid_frame"),
        ({"blocks": b"\0" * 2_000_001}, "blocks_too_big"),
        ({"ops": None}, "invalid_ops"),
        ({"ops": [1]}, "invalid_ops"),
        ({"ops": [_CREATE | {"path": str(n)} for n in range(201)]}, "invalid_ops"),
        ({"ops": [_CREATE | {"action": "upsert"}]}, "invalid_ops"),
        ({"ops": [_CREATE | {"action": ["create"]}]}, "invalid_ops"),
        ({"ops": [_CREATE | {"path": b"a"}]}, "invalid_ops"),
        ({"ops": [_CREATE | {"cid": None}]}, "invalid_ops"),
        ({"ops": [_CREATE | {"cid": str(CID)}]}, "invalid_ops"),
        ({"ops": [_CREATE | {"action": "delete"}]}, "invalid_ops"),
        ({"ops": [_CREATE | {"action": "delete", "cid": 1}]}, "invalid_ops"),
        ({"ops": [_CREATE | {"action": "update", "prev": "x"}]}, "invalid_ops"),
    ],
)
def test_malformed_commits_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidDataError) as error:
        decode_frame(encode_frame("#commit", commit_body() | change))
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("ops", "expected"),
    [
        ([("create", CID, None), ("create", OTHER, None)], ("create", OTHER, None)),
        ([("create", CID, None), ("update", OTHER, CID)], ("update", OTHER, None)),
        ([("create", CID, None), ("delete", None, CID)], ("delete", None, None)),
        ([("delete", None, OTHER), ("create", CID, None)], ("create", CID, OTHER)),
        ([("update", CID, OTHER), ("delete", None, CID)], ("delete", None, OTHER)),
    ],
)
def test_several_operations_on_one_path_are_what_they_amount_to(
    ops: list[tuple[Any, ...]], expected: tuple[Any, ...]
) -> None:
    """The specification forbids them; the official consumer performs them in their order."""
    listed = [
        {"action": action, "path": "a.b.c/1", "cid": cid, "prev": prev} for action, cid, prev in ops
    ]
    other = _CREATE | {"path": "a.b.c/2"}
    body = commit_body() | {"ops": [listed[0], other, listed[1]]}
    message = decode_frame(encode_frame("#commit", body))
    assert isinstance(message, CommitMessage)
    found = [(op.action, op.cid, op.prev) for op in message.ops if op.path == "a.b.c/1"]
    assert found == [expected]
    assert len(message.ops) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ops": [_CREATE | {"path": str(n)} for n in range(201)]}, "invalid_ops"),
        ({"blocks": b"\0" * 2_000_001}, "blocks_too_big"),
        ({"since": 1}, "invalid_frame"),
        ({"ops": None}, "invalid_ops"),
    ],
)
def test_of_a_commit_beyond_a_limit_the_account_is_read(
    change: dict[str, Any], reason: str
) -> None:
    body = commit_body() | change
    with pytest.raises(UnreadableCommitError) as error:
        decode_frame(encode_frame("#commit", body))
    found = error.value
    assert (found.reason, found.did, found.rev) == (reason, body["repo"], body["rev"])


def test_of_a_commit_whose_rev_is_a_shortened_tid_an_earlier_rev_is_read() -> None:
    """Its repo is fetched then, and the rev that is asked for must not be above the true one."""
    body = commit_body()
    for length in (11, 12):
        rev = body["rev"][:length]
        with pytest.raises(UnreadableCommitError) as error:
            decode_frame(encode_frame("#commit", body | {"rev": rev}))
        assert error.value.rev < rev
        assert rev_microseconds(rev) - tid_microseconds(error.value.rev) == 1


@pytest.mark.parametrize("field", ["seq", "repo", "rev", "commit", "blocks", "ops", "time"])
def test_required_fields(field: str) -> None:
    body = commit_body()
    del body[field]
    with pytest.raises(InvalidDataError):
        decode_frame(encode_frame("#commit", body))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "invalid_cbor"),
        (b"\xa0", "invalid_cbor"),
        (b"\xa0\xa0", "invalid_frame"),
        (b"\x01\xa0", "invalid_frame"),
        (cbor.encode({"op": 1, "t": "#info"}) + b"\x80", "invalid_frame"),
        (encode_frame("#info", {"name": "x"}) + b"\x00", "trailing_bytes"),
        (encode_frame("#info", {}), "invalid_frame"),
        (encode_frame("#labels", {"seq": 1, "labels": [1]}), "invalid_frame"),
        (encode_frame("#account", {"seq": 1, "did": DID, "time": TIME}), "invalid_frame"),
        (encode_frame("#sync", {"seq": 1, "did": DID, "rev": REV, "time": TIME}), "invalid_frame"),
        (
            cbor.encode({"op": 1, "t": "#labels"})
            + bytes.fromhex("a26373657101666c6162656c7381a16161fb3ff0000000000000"),
            "float",
        ),
        (b"\x00" * (MAX_FRAME + 1), "frame_too_big"),
    ],
)
def test_malformed_frames_are_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(InvalidDataError) as error:
        decode_frame(raw)
    assert error.value.reason == reason


@given(st.data())
@settings(max_examples=200)
def test_damaged_frames_are_decoded_or_refused(data: st.DataObject) -> None:
    raw = bytearray(encode_frame("#commit", commit_body()))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_frame(bytes(raw))
    except InvalidDataError:
        return


def test_recorded_frames_are_written_as_they_were() -> None:
    for raw in corpus_frames(test_data("fixtures/jetstream/corpus")):
        header, body = cbor.decode_pair(raw)
        assert encode_frame(header["t"], body) == raw


def test_the_recorded_label_frame() -> None:
    raw = test_data("fixtures/labels/labels_frame_seq15907807.bin").read_bytes()
    message = decode_frame(raw)
    assert isinstance(message, LabelsMessage)
    assert message.seq == 15_907_807
    assert [label["val"] for label in message.labels] == ["porn"]


@pytest.mark.parametrize(
    ("kind", "extra", "expected"),
    [
        ("#handle", {"handle": "a.test"}, IdentityMessage(5, DID, TIME, "a.test")),
        ("#migrate", {"migrateTo": "pds.test"}, IdentityMessage(5, DID, TIME, None)),
        ("#migrate", {"migrateTo": None}, IdentityMessage(5, DID, TIME, None)),
        ("#tombstone", {}, AccountMessage(5, DID, TIME, False, "deleted")),
    ],
)
def test_messages_of_before_2024_say_what_others_say_today(
    kind: str, extra: dict[str, Any], expected: object
) -> None:
    body = {"seq": 5, "did": DID, "time": TIME}
    assert decode_frame(encode_frame(kind, body | extra)) == expected
    with pytest.raises(InvalidDataError):
        decode_frame(encode_frame(kind, body | extra | {"did": "alice"}))
