"""Compiled: commits of the firehose, against the Python for what they leave."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto import car, cbor, compiled, dagjson, frame
from rsky_pipeline.atproto.cid import RAW, Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.mst.node import _parse_anything
from tests.data import test_data as data_at
from tests.data_frames import corpus_frames
from tests.unit.atproto.damaged import damage, readers, values

__all__ = ["readers"]

BODY: dict[str, Any] = {
    "seq": 5, "repo": "did:plc:" + "a" * 24, "rev": "3l3qo2vutsw2b", "since": None,
    "commit": Cid.of(b"1"), "blocks": b"", "prevData": None, "time": "2026", "tooBig": False,
    "rebase": False, "ops": [
        {"action": "create", "path": "a.b.c/d", "cid": Cid.of(b"2"), "prev": None},
        {"action": "delete", "path": "a.b.c/e", "cid": None, "prev": Cid.of(b"3")},
    ],
}  # fmt: skip
KEYS = st.sampled_from([*BODY, "op", "blobs", "prev", "other"])
OF_AN_OPERATION = st.sampled_from(["action", "path", "cid", "prev", "other"])
anything = values | st.sampled_from([*BODY.values(), Cid.of(b"", RAW), "3l3qo2vutsw2b", 2**53])


def read(raw: object) -> frame.CommitMessage | None:
    fields = compiled.read_commit(raw, frame.RepoOp._make)
    return None if fields is None else frame.CommitMessage._make(fields)


def read_without(raw: bytes) -> frame.Message | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "read_commit", lambda *_: None)
        try:
            return frame.decode_frame(raw)
        except InvalidDataError:
            return None


@given(KEYS, anything, OF_AN_OPERATION, st.booleans(), st.data())
@settings(max_examples=500)
def test_commits(key: str, value: Any, field: str, gone: bool, data: st.DataObject) -> None:
    body = BODY | {"ops": [dict(op) for op in BODY["ops"]]}
    changed, name = (body["ops"][0], field) if key == "op" else (body, key)
    if gone:
        changed.pop(name, None)
    else:
        changed[name] = value
    raw = frame.encode_frame("#commit", body)
    for given_raw in (raw, damage(raw, data)):
        assert read(given_raw) in {None, read_without(given_raw)}


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({}, True),
        ({"blobs": [], "prev": None, "since": "3l3qo2vutsw2a", "prevData": Cid.of(b"4")}, True),
        ({"prev": Cid.of(b"5"), "seq": 2**53 - 1, "blocks": b"x" * 70_000}, True),
        ({"tooBig": True, "rebase": True, "ops": []}, True),
        ({"seq": 2**53}, False),
        ({"seq": -1}, False),
        ({"blobs": [Cid.of(b"6")]}, False),
        ({"repo": "did:web:example.com"}, False),
        ({"rev": "3l3qo2vutsw2"}, False),
        ({"time": None}, False),
        ({"ops": [BODY["ops"][0]] * 2}, False),
        ({"ops": [BODY["ops"][0] | {"path": f"a/{number}"} for number in range(201)]}, False),
        ({"blocks": b"x" * 2_000_001}, False),
        ({"commit": None}, False),
        ({"new": 1}, False),
    ],
)
def test_chosen_commits(changes: dict[str, Any], accepted: bool) -> None:
    raw = frame.encode_frame("#commit", BODY | changes)
    message = read(raw)
    assert (message is not None) is accepted
    if accepted:
        assert message == read_without(raw)
        assert read(bytearray(raw)) is None
        assert read(raw + b"\x00") is None
        assert all(read(raw[:size]) is None for size in range(min(len(raw), 400)))


def test_every_real_frame_is_read_by_it() -> None:
    commits = 0
    for raw in corpus_frames(data_at("fixtures/jetstream/corpus")):
        _, body = cbor.decode_pair_loosely(raw)
        if "ops" not in body:
            continue
        commits += 1
        message = read(raw)
        assert message is not None
        assert message == read_without(raw)
        blocks = car.read_car(message.blocks).blocks
        for op in message.ops:
            if op.cid is not None:
                made = compiled.record_json(blocks[op.cid])
                assert made == dagjson.to_json(cbor.decode(blocks[op.cid]))
        for block in blocks.values():
            if block.startswith(b"\xa2ae"):
                content = _parse_anything(block)
                assert compiled.read_node(block) == (
                    content.keys, content.values, content.children,
                )  # fmt: skip
    assert commits == 148
