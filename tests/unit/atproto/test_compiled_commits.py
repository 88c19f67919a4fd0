"""Compiled: commits of the firehose and their events, against the Python for what they leave."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orjson import Fragment

from rsky_pipeline.atproto import car, cbor, compiled, dagjson, frame, syntax
from rsky_pipeline.atproto.cid import RAW, Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.mst.node import _parse_anything
from rsky_pipeline.ingester.commits.convert import encode_commit_events
from rsky_pipeline.streams.event import encode_record_event
from tests.data import test_data as data_at
from tests.data_frames import corpus_frames
from tests.unit.atproto.damaged import PLC, damage, readers, records, texts, values

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


usual_paths = st.from_regex(
    r"[a-z]{1,3}\.[a-zA-Z]{1,5}\.[a-z]{1,3}/[0-9a-z._~:-]{1,20}", fullmatch=True
)
ODD_PATHS = ["a.b/c", "a.b.c/", "a.b.c", "a..b.c/d", "a.b.c./d", "a.b.c/..", "a.b.c/ü", "a.b1.c/d"]
blocks_of_records = records.map(cbor.encode) | st.sampled_from([b"", b"\x01", b"\xa1\x61a\xf7"])
operations = st.lists(
    st.tuples(
        st.sampled_from(["create", "update", "delete"]),
        usual_paths | st.sampled_from(ODD_PATHS),
        blocks_of_records,
    ),
    max_size=20,
)


def events_without(message: frame.CommitMessage, blocks: dict[Cid, bytes]) -> list[bytes] | None:
    made = []
    for op in message.ops:
        parts = syntax.split_path(op.path)
        block = None if op.cid is None else blocks.get(op.cid, b"")
        if parts is None or (block is not None and op.cid != Cid.of(block)):
            return None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiled, "record_json", lambda _: None)
            try:
                record = None if block is None else Fragment(dagjson.record_to_json(block))
            except InvalidDataError:
                return None
        made.append(
            encode_record_event(
                op.action, seq=message.seq, time=message.time, did=message.did, rev=message.rev,
                commit=str(message.commit), collection=parts[0], rkey=parts[1], cid=str(op.cid),
                record=record,
            )
        )  # fmt: skip
    return made


def events_found(message: frame.CommitMessage) -> list[bytes] | None:
    """Without verification only the blocks of the operations are looked at."""
    wanted = {op.cid for op in message.ops if op.cid is not None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "find_wanted", lambda *_: None)
        try:
            roots, found = car.find_blocks(message.blocks, wanted)
        except InvalidDataError:
            return None
    blocks = {Cid(name): block for name, block in found.items()}
    return events_without(message, blocks) if roots[0] == message.commit else None


@given(operations, texts, st.data())
@settings(max_examples=300)
def test_events_of_a_commit(
    written: list[tuple[Any, str, bytes]], time: str, data: st.DataObject
) -> None:
    root = Cid.of(b"root")
    blocks = {Cid.of(block): block for _, _, block in written}
    ops = tuple(
        frame.RepoOp(action, path, None if action == "delete" else Cid.of(block), None)
        for action, path, block in written
    )
    sections = [*blocks.items(), (Cid.of(b"other"), b"other")]
    archive = car.write_car([root], data.draw(st.permutations(sections)))
    message = frame.CommitMessage(
        3, PLC, "3l3qo2vutsw2b", None, root, archive, ops, None, time, False, False
    )
    expected = events_without(message, blocks)
    assert encode_commit_events(message, ops, None, 10**6) in (None, expected)
    assert encode_commit_events(message, ops, blocks, 10**6) in (None, expected)
    damaged = message._replace(blocks=damage(archive, data))
    assert encode_commit_events(damaged, ops, None, 10**6) in (None, events_found(damaged))


@pytest.mark.parametrize("byte", range(97, 139))  # the section that no operation names
def test_blocks_of_no_operation_are_stepped_over(byte: int) -> None:
    root, block = Cid.of(b"root"), cbor.encode({})
    ops = (frame.RepoOp("create", "a.b.c/d", Cid.of(block), None),)
    sections = [(Cid.of(block), block), (Cid.of(b"other"), b"other")]
    archive = bytearray(car.write_car([root], sections))
    archive[byte] ^= 0xFF
    message = frame.CommitMessage(
        3, PLC, "3l3qo2vutsw2b", None, root, bytes(archive), ops, None, "2026", False, False
    )
    expected = events_found(message)
    assert (expected is None) is (byte == 97)  # its length
    assert encode_commit_events(message, ops, None, 10**6) == expected


def test_events_of_usual_operations() -> None:
    record = {"$type": "a.b.c", "link": Cid.of(b""), "text": '"ü'}
    block = cbor.encode(record)
    root, cid = Cid.of(b"root"), Cid.of(block)
    ops = (
        frame.RepoOp("create", "a.b.c/3l3qo2vutsw2b", cid, None),
        frame.RepoOp("update", "a.b.c/self", cid, cid),
        frame.RepoOp("delete", "a.b.c/_~:-", None, cid),
    )
    message = frame.CommitMessage(
        3, PLC, "3l3qo2vutsw2b", None, root, car.write_car([root], [(cid, block)]), ops, None,
        'a"time', False, False,
    )  # fmt: skip
    expected = events_without(message, {cid: block})
    assert expected is not None
    size = sum(map(len, expected))
    assert encode_commit_events(message, ops, None, size) == expected
    assert encode_commit_events(message, ops, {cid: block}, size) == expected
    assert encode_commit_events(message, ops, None, size - 1) is None
    assert encode_commit_events(message, ops, {}, size) is None
    assert encode_commit_events(message, ops, {cid: cbor.encode({})}, size) is not None
    other = message._replace(blocks=car.write_car([root], [(cid, cbor.encode({}))]))
    assert encode_commit_events(other, ops, None, size) is None
    other = message._replace(blocks=car.write_car([cid], [(cid, block)]))
    assert encode_commit_events(other, ops, None, size) is None


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
        expected = events_without(message, blocks)
        assert encode_commit_events(message, message.ops, None, 10**6) == expected
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
