"""The compiled readers against the Python that reads what they leave over."""

import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orjson import Fragment

from rsky_pipeline.atproto import car, cbor, compiled, dagjson, datetimes, frame, syntax
from rsky_pipeline.atproto.cid import RAW, Cid
from rsky_pipeline.atproto.errors import IncompleteTree, InvalidData
from rsky_pipeline.atproto.mst import Change, Tree, invert
from rsky_pipeline.atproto.mst.node import _parse_anything
from rsky_pipeline.indexer.lexicon import check
from rsky_pipeline.streams.event import encode_commit_events, encode_record_event
from tests.data import test_data as data_at
from tests.data_frames import corpus_frames
from tests.unit.atproto import trees

HEADERS = Path(sysconfig.get_path("include"), "Python.h")
can_build = HEADERS.exists() and shutil.which("cc") is not None
cids = st.builds(Cid.of, st.binary(max_size=8), st.sampled_from([0x71, RAW]))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts | st.binary() | cids
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20
)
records = st.dictionaries(texts, values, max_size=6)
odd_bytes = st.sampled_from(b'\x00\x01\x18\x1b\x2a/"\\aplt\x58\x60\x78\x80\xa0\xa2\xd8\xf6\xff')
paths = st.from_regex(r"[a-z]{1,3}\.[a-z]{1,2}/[0-9a-z._~:-]{1,300}", fullmatch=True)


def damage(block: bytes, data: st.DataObject) -> bytes:
    """Change, drop or repeat a little."""
    kind = data.draw(st.sampled_from(["change", "cut", "add", "drop"]))
    at = data.draw(st.integers(0, max(len(block) - 1, 0)))
    match kind:
        case "change":
            return block[:at] + bytes([data.draw(odd_bytes)]) + block[at + 1 :]
        case "cut":
            return block[:at]
        case "add":
            return block + block[at : at + 5]
    return block[:at] + block[at + 1 :]


@pytest.fixture(scope="module", autouse=True)
def readers() -> None:
    """Leave the readers as they are, and have some where they can be built."""
    if not compiled.COMPILED and not can_build:
        pytest.skip("needs a C compiler and Python's headers")


def test_they_were_built() -> None:
    assert compiled.COMPILED


@given(st.dictionaries(paths, cids, min_size=1, max_size=30), st.data())
@settings(max_examples=150)
def test_nodes(held: dict[str, Cid], data: st.DataObject) -> None:
    block = data.draw(st.sampled_from([block for _, block in Tree.build(held).blocks()]))
    content = _parse_anything(block)
    assert compiled.read_node(block) == (content.keys, content.values, content.children)
    damaged = damage(block, data)
    read = compiled.read_node(damaged)
    if read is not None:
        content = _parse_anything(damaged)
        assert read == (content.keys, content.values, content.children)


@pytest.mark.parametrize("size", [23, 24, 255, 256, 1_020, 1_030])
def test_nodes_with_long_keys(size: int) -> None:
    keys = [f"a.b/{'x' * (size - 4)}{letter}" for letter in "ab"]
    entries: list[Any] = [
        {"k": keys[0].encode(), "p": 0, "t": None, "v": Cid.of(b"1")},
        {"k": b"b", "p": size, "t": None, "v": Cid.of(b"2")},
    ]
    block = cbor.encode({"e": entries, "l": None})
    read = compiled.read_node(block)
    if size >= 1_024:
        assert read is None
        with pytest.raises(InvalidData, match="collection/rkey"):
            _parse_anything(block)
    else:
        assert read is not None
        assert read[0] == [key.encode() for key in keys]


@given(st.lists(st.binary(max_size=300), max_size=5), st.data())
@settings(max_examples=150)
def test_blocks_of_a_car(contents: list[bytes], data: st.DataObject) -> None:
    pairs = [(Cid.of(content), content) for content in contents]
    sections = car.write_car([Cid.of(b"root")], pairs)[len(car.write_car([Cid.of(b"root")], [])) :]
    largest = car.MAX_BLOCK + 36
    assert compiled.read_blocks(sections, 0, largest, True) == dict(pairs)
    wanted = {cid for cid, _ in pairs[::2]}
    assert compiled.find_wanted(sections, 0, largest, wanted) == {
        cid: block for cid, block in pairs if cid in wanted
    }
    damaged = damage(sections, data)
    for check_hashes in (True, False):
        read = compiled.read_blocks(damaged, 0, largest, check_hashes)
        if read is not None:
            assert read == car._read_blocks(damaged, 0, car.MAX_BLOCK, check_hashes)
    found = compiled.find_wanted(damaged, 0, largest, wanted)
    if found is not None:
        assert found == car._find_blocks(damaged, 0, wanted)


def invert_without(blocks: dict[Cid, bytes], root: Cid, changes: list[Change]) -> Cid | None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("undo_changes", "read_node"):
            patch.setattr(compiled, name, lambda *_: None)
        try:
            return invert(blocks, root, changes)
        except (InvalidData, IncompleteTree):
            return None


def undo(blocks: dict[Cid, bytes], root: Cid, changes: list[Change]) -> bytes | None:
    ordered = sorted(changes, key=lambda change: change.path, reverse=True)
    rows = [(change.path.encode(), change.cid, change.prev) for change in ordered]
    return compiled.undo_changes(blocks, bytes(root), rows)


@given(trees.items, st.dictionaries(trees.paths, trees.cids, min_size=1, max_size=16), st.data())
@settings(max_examples=300)
def test_undoing(held: dict[str, Cid], written: dict[str, Cid], data: st.DataObject) -> None:
    held |= {"com.example.record/last": trees.LEAF}  # what leads to an empty tree is left to Python
    tree = Tree.build(held)
    before = tree.root
    tree.take_new_blocks()
    changes = [Change(path, cid, held.get(path)) for path, cid in written.items()]
    blocks = tree.apply(changes)
    assert undo(blocks, tree.root, changes) == before
    assert invert_without(blocks, tree.root, changes) == before
    kind = data.draw(st.sampled_from(["lose", "damage", "lie", "delete", "repeat"]))
    lacks_a_block = kind in {"lose", "damage"}
    match kind:
        case "lose":
            del blocks[data.draw(st.sampled_from(sorted(blocks)))]
        case "damage":
            cid = data.draw(st.sampled_from(sorted(blocks)))
            blocks[cid] = damage(blocks[cid], data)
        case "lie":
            at = data.draw(st.integers(0, len(changes) - 1))
            cid, prev = data.draw(trees.cids), data.draw(st.none() | trees.cids)
            changes[at] = Change(changes[at].path, cid, prev)
        case "delete":
            changes.append(Change(data.draw(trees.paths), None, data.draw(trees.cids)))
        case "repeat":
            changes.append(changes[0])
    undone = undo(blocks, tree.root, changes)
    # A node that undoing makes may stand for one that is missing or damaged: it has the same hash.
    assert undone in {None, invert_without(blocks, tree.root, changes)} or (
        lacks_a_block and undone == before
    )


def test_undoing_many_changes_is_left_to_python() -> None:
    tree = Tree()
    changes = [Change(f"a.b/{number}", Cid.of(b""), None) for number in range(17)]
    blocks = tree.apply(changes)
    assert undo(blocks, tree.root, changes) is None
    assert undo(blocks, tree.root, changes[:16]) is not None


@pytest.mark.parametrize(
    "length", [b"", b"\x80\x00", b"\xff\xff\xff\xff\x0f", b"\xff" * 12, b"\x23"]
)
def test_lengths_that_lie(length: bytes) -> None:
    cid = Cid.of(b"")
    assert compiled.read_blocks(length + cid, 0, 1_000_000, True) is None
    assert compiled.read_blocks(b"\x24" + cid, 0, 10, True) is None
    assert compiled.read_blocks(b"\x24" + cid, 0, 36, True) == {cid: b""}


@given(records, st.data())
@settings(max_examples=300)
def test_records(record: dict[str, Any], data: st.DataObject) -> None:
    block = cbor.encode(record)
    made = compiled.record_json(block)
    assert made is None or made == dagjson.to_json(cbor.decode(block))
    damaged = damage(block, data)
    made = compiled.record_json(damaged)
    if made is not None:
        assert made == dagjson.to_json(cbor.decode(damaged))


@pytest.mark.parametrize(
    ("record", "accepted"),
    [
        ({"a": 2**63 - 1, "b": -(2**63), "c": [0, 23, 24, 255, 256, 65_536, 2**32]}, True),
        ({'\x00\x1f\x7f"\\/\b\f\n\r\t': "ü€😀"}, True),
        ({"link": Cid.of(b""), "bytes": b"\x00\xff"}, True),
        ({"deep": [[[[[[[[{"x": {}}]]]]]]]]}, True),
        ([], False),
        ("text", False),
        ({"long": "x" * 70_000}, False),
    ],
)
def test_chosen_records(record: Any, accepted: bool) -> None:
    block = cbor.encode(record)
    made = compiled.record_json(block)
    assert (made is not None) is accepted
    if accepted:
        assert made == dagjson.to_json(record)
        assert dagjson.record_to_json(block) == made


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\xa1\x61a\x18\x01",  # not in the shortest form
        b"\xa1\x61a\x1b\xff\xff\xff\xff\xff\xff\xff\xff",  # more than 63 bits
        b"\xa1\x61a\x3b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa1\x61a\xfb\x3f\xf0\0\0\0\0\0\0",  # a float
        b"\xa1\x61a\xf7",  # undefined
        b"\xa1\x01\x01",  # a key that is no text
        b"\xa2\x61a\x01\x61a\x02",  # a key twice
        b"\xa2\x61b\x01\x61a\x02",  # keys out of order
        b"\xa2\x62aa\x01\x61b\x02",
        b"\xa1\x61a\x61\xff",  # not UTF-8
        b"\xa1\x61a\x62\xed\xa0",
        b"\xa1\x61a\x63\xed\xa0\x80",  # a lone surrogate
        b"\xa1\x61a\x9f\xff",  # of indefinite length
        b"\xbf\xff",
        b"\xa1\x61a\xd8\x2a\x41\x00",  # a link to nothing
        b"\xa1\x61a\xc1\x01",  # another tag
        b"\xa1\x61a\x01\x00",  # more than one item
        b"\xa1\x61a\x7b\x7f\xff\xff\xff\xff\xff\xff\xff",  # lengths beyond all that is there
        b"\xa1\x61a\x9b\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa1\x61a" + b"\x81" * 200 + b"\x00",  # too deep
    ],
)
def test_records_that_are_left_to_the_decoder(block: bytes) -> None:
    assert compiled.record_json(block) is None


@given(st.text(max_size=14) | st.from_regex(r"[2-7a-z]{13}", fullmatch=True))
@settings(max_examples=300)
def test_tids(text: str) -> None:
    value = compiled.tid_value(text)
    assert (value is not None) is (syntax._TID.fullmatch(text) is not None)
    if value is not None:
        assert value == int(text.translate(syntax._TID_DIGITS), 32)
        assert syntax.tid_text(value) == text


PLC = "did:plc:z72i7hdynmk6r22z27h6tvur"
USUAL = [
    PLC, f"at://{PLC}/app.bsky.feed.post/3l3qo2vutsw2b", f"at://{PLC}/a.b.c/.", "..", "a.b~_:-",
    "2026-01-28T23:59:59.999Z", "2026-02-29T00:00:00.000Z", str(Cid.of(b"")), "x" * 513,
]  # fmt: skip
identifiers = st.sampled_from(USUAL) | st.text("aA.:/-_~207T", max_size=70)


@given(identifiers, st.integers(0, 80), st.sampled_from(["", *"aZ09./:-_~ ü\U0001f600"]))
@settings(max_examples=1_000)
def test_what_is_usual_is_valid(text: str, at: int, letter: str) -> None:
    """One letter is another one, or gone: whatever is accepted then, the rules accept."""
    checks = [
        (compiled.is_plc, syntax.is_did),
        (compiled.is_usual_rkey, syntax.is_rkey),
        (compiled.is_usual_uri, syntax.is_at_uri),
        (compiled.is_usual_cid, check.is_cid),
        (compiled.is_usual_datetime, datetimes.is_datetime),
    ]
    usual = {accepts for accepts, _ in checks}
    for changed in (text, text[:at] + letter + text[at + 1 :]):
        accepted = [rule for accepts, rule in checks if accepts(changed)]
        with pytest.MonkeyPatch.context() as patch:
            for accepts in usual:
                patch.setattr(compiled, accepts.__name__, lambda _: False)
            assert all(rule(changed) for rule in accepted), changed


@pytest.mark.parametrize(
    ("accepts", "text"),
    [
        (compiled.is_plc, PLC),
        (compiled.is_usual_rkey, "3l3qo2vutsw2b"),
        (compiled.is_usual_rkey, "self"),
        (compiled.is_usual_uri, f"at://{PLC}/app.bsky.feed.post/3l3qo2vutsw2b"),
        (compiled.is_usual_cid, str(Cid.of(b""))),
        (compiled.is_usual_datetime, "2026-12-28T23:59:59.999Z"),
    ],
)
def test_the_usual_is_accepted(accepts: Callable[[str], bool], text: str) -> None:
    assert accepts(text)
    assert not accepts(text + "\n")
    assert not accepts("")


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
    fields = compiled.read_commit(raw, frame.RepoOp._make, frame.MAX_OPS, frame.MAX_COMMIT_BLOCKS)
    return None if fields is None else frame.CommitMessage._make(fields)


def read_without(raw: bytes) -> frame.Message | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "read_commit", lambda *_: None)
        try:
            return frame.decode_frame(raw)
        except InvalidData:
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
            except InvalidData:
                return None
        made.append(
            encode_record_event(
                op.action, seq=message.seq, time=message.time, did=message.did, rev=message.rev,
                commit=str(message.commit), collection=parts[0], rkey=parts[1], cid=str(op.cid),
                record=record,
            )
        )  # fmt: skip
    return made


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
    try:
        held = car.read_car(damaged.blocks, check_hashes=False)
    except InvalidData:
        assert not blocks or encode_commit_events(damaged, ops, None, 10**6) is None
        return
    expected = events_without(damaged, held.blocks) if held.roots[0] == root else None
    assert encode_commit_events(damaged, ops, None, 10**6) in (None, expected)


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
