"""Commits that `compiled.prove` reads, against the Python that reads what it leaves over.

EXAMPLES=10000 in the environment tries more of them.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto import car, cbor, compiled
from rsky_pipeline.atproto.cid import RAW, Cid
from rsky_pipeline.atproto.commit import sign_commit, verify_commit
from rsky_pipeline.atproto.crypto import PrivateKey, PublicKey
from rsky_pipeline.atproto.frame import CommitMessage, RepoOp, decode_frame
from rsky_pipeline.atproto.identity import parse_did_document
from rsky_pipeline.atproto.mst import Change, Tree
from rsky_pipeline.configuration.settings import Verify
from rsky_pipeline.ingester.commits.convert import MAX_FRAME_OUTPUT, Found, RepoConverter
from rsky_pipeline.ingester.commits.validation import UnreadCommit, check_operations
from rsky_pipeline.ingester.frames import FrameCounters, PendingFrame, RawDeadLetters
from tests.data import test_data as data_at
from tests.data_frames import corpus_documents, corpus_frames
from tests.unit.atproto.damaged import PLC, damage, odd_bytes, records, texts
from tests.unit.readers import python_alone

EXAMPLES = int(os.environ.get("EXAMPLES", "25"))
MODES: tuple[Verify, ...] = ("none", "signature", "full")
TIME, REV = "2026-07-04T14:38:08.999Z", "3l3qo2vutsw2b"
KEY, OTHER = PrivateKey.from_seed("k256", b"a"), PrivateKey.from_seed("k256", b"b")

if not compiled.COMPILED:
    pytest.skip("needs a C compiler and Python's headers", allow_module_level=True)

letters = st.sampled_from("abcdefgh0123")
paths = st.builds(
    lambda collection, key: f"com.example.{collection}/{key}",
    st.sampled_from(["record", "recorD", "other"]),
    st.text(letters, min_size=1, max_size=3),
)
odd_paths = st.sampled_from(
    ["a/b", "a.b.c/", "/a", "com.example.record", "com.example.record/..", "com.example.record/ü",
     "com.example.record/a/b", "com.example.r3cord/a", f"com.example.record/{'x' * 513}",
     "com..example/a", "com.example./a", f"com.example.{'x' * 60}/a"]
)  # fmt: skip
contents = st.sampled_from([{}, {"a": 1}]) | records


def converter(verify: Verify) -> RepoConverter:
    counters, letters = FrameCounters(), RawDeadLetters("raw")
    return RepoConverter("relay.test", "https://relay.test", (), counters, letters, verify=verify)


def prove(
    message: CommitMessage, mode: int, ops: tuple[RepoOp, ...] | None = None,
    key: PublicKey | None = KEY.public, most: int = MAX_FRAME_OUTPUT,
) -> Found | None:  # fmt: skip
    held = None if key is None else key.secp256k1
    done = compiled.prove([(message, message.ops if ops is None else ops, held)], mode, most)
    assert done is not None
    ((found,), seconds) = done
    assert all(spent >= 0 for spent in seconds)
    return found


def complete(
    verify: Verify, unread: UnreadCommit, found: Found | None
) -> tuple[RepoConverter, PendingFrame]:
    made = converter(verify)
    frame = PendingFrame(unread.message.seq, unread.message.time, [], 0, unread=unread)
    made.complete(frame, unread, found)
    return made, frame


def same(verify: Verify, message: CommitMessage, ops: tuple[RepoOp, ...], key: PublicKey) -> bool:
    """Hold a commit that is proven against Python; False if it is left to it."""
    found = prove(message, MODES.index(verify), ops, key)
    if found is None:
        return False
    unread = UnreadCommit(message, b"raw", 1, None, ops)
    mine, frame = complete(verify, unread, found)
    with python_alone():
        other, expected = complete(verify, unread, None)
        assert expected.update is not None
        assert frame.update is not None
        proof, proven = expected.update.proof, frame.update.proof
        if verify == "none":
            assert proof is proven is None
        else:
            assert proof is not None
            assert proof.commit is not None
            assert proven is not None
            good = verify_commit(proof.commit, PublicKey(key.curve, key.point))
            assert found[1] is (good if key.curve == "k256" else None)
            assert proven.commit == (None if found[1] else proof.commit)
            assert proven.has_operations is proof.has_operations
            assert check_operations(proven) == check_operations(proof)
            if verify == "full":
                assert check_operations(proof) == message.prev_data
    assert frame.update._replace(proof=None) == expected.update._replace(proof=None)
    assert replace(frame, update=None) == replace(expected, update=None)
    other.counters.seconds.clear()
    assert vars(mine.counters) == vars(other.counters)
    return True


@st.composite
def commits(draw: st.DrawFn) -> tuple[CommitMessage, PublicKey]:
    """A signed commit of some operations on a random tree, as an honest host sends it."""
    held = draw(st.dictionaries(paths, contents, max_size=40))
    tree = Tree.build({path: Cid.of(cbor.encode(record)) for path, record in held.items()})
    before = tree.root
    tree.take_new_blocks()
    written: dict[str, Any] = draw(st.dictionaries(paths, st.none() | contents, max_size=8))
    for path in draw(st.lists(st.sampled_from(sorted(held) or ["com.example.record/a"]))):
        written[path] = None
    ops, made = [], {}
    for path, record in written.items():
        prev = None if path not in held else Cid.of(cbor.encode(held[path]))
        if record is None:
            if prev is None:
                continue
            ops.append(RepoOp("delete", path, None, prev))
        else:
            block = cbor.encode(record)
            made[Cid.of(block)] = block
            ops.append(RepoOp("create" if prev is None else "update", path, Cid.of(block), prev))
    nodes = tree.apply([Change(op.path, op.cid, op.prev) for op in ops])
    key = draw(st.sampled_from([KEY, KEY, KEY, PrivateKey.from_seed("p256", b"a")]))
    return message_of(ops, tree.root, before, {**nodes, **made}, key), key.public


def message_of(
    ops: list[RepoOp], root: Cid, before: Cid | None, blocks: dict[Cid, bytes],
    key: PrivateKey = KEY, did: str = PLC,
) -> CommitMessage:  # fmt: skip
    signed = sign_commit(did, REV, root, key)
    name = Cid.of(signed)
    archive = car.write_car([name], [(name, signed), *blocks.items()])
    return CommitMessage(
        5, did, REV, None, name, archive, tuple(ops), before, TIME, False, False
    )  # fmt: skip


@given(commits(), st.sampled_from(MODES), st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_honest_commits_are_proven(
    given_commit: tuple[CommitMessage, PublicKey], verify: Verify, data: st.DataObject
) -> None:
    message, key = given_commit
    ops = tuple(op for op in message.ops if data.draw(st.booleans()))
    assert same(verify, message, ops, key)
    assert same(verify, message, message.ops, OTHER.public)


@given(commits(), st.sampled_from(MODES), st.data())
@settings(max_examples=2 * EXAMPLES, deadline=None)
def test_other_commits_are_what_python_finds(
    given_commit: tuple[CommitMessage, PublicKey], verify: Verify, data: st.DataObject
) -> None:
    """Damaged, incomplete and lying ones; also where each block has its own hash all the same."""
    message, key = given_commit
    blocks = car.read_car(message.blocks).blocks
    names = list(blocks)
    kind = data.draw(st.sampled_from(
        ["damage", "damage", "byte", "lose", "order", "twice", "block", "lie", "path", "time",
         "prevData", "did", "rev", "root", "more", "raw"]
    ))  # fmt: skip
    ops = list(message.ops)
    match kind:
        case "damage":
            message = message._replace(blocks=damage(message.blocks, data))
        case "byte":
            at = data.draw(st.integers(0, len(message.blocks) - 1))
            changed = bytearray(message.blocks)
            changed[at] = data.draw(odd_bytes)
            message = message._replace(blocks=bytes(changed))
        case "lose" | "order" | "twice":
            chosen = data.draw(st.permutations(names))
            chosen = chosen[1:] if kind == "lose" else chosen
            pairs = [(name, blocks[name]) for name in chosen]
            if kind == "twice":
                name = chosen[0]
                pairs.append((name, data.draw(st.sampled_from([blocks[name], b""]))))
            message = message._replace(blocks=car.write_car([message.commit], pairs))
        case "block":  # under its own hash, which operations and nodes may name
            old = data.draw(st.sampled_from(names))
            new = damage(blocks[old], data)
            content = [block.replace(old, Cid.of(new)) if block != blocks[old] else new
                       for block in blocks.values()]  # fmt: skip
            ops = [op._replace(cid=Cid.of(new)) if op.cid == old else op for op in ops]
            pairs = [(Cid.of(block), block) for block in content]
            root = pairs[names.index(message.commit)][0]
            message = message._replace(commit=root, blocks=car.write_car([root], pairs))
        case "lie" if ops:
            at = data.draw(st.integers(0, len(ops) - 1))
            cids = st.none() | st.sampled_from([*names, Cid.of(b""), Cid.of(b"", RAW)])
            ops[at] = ops[at]._replace(cid=data.draw(cids), prev=data.draw(cids))
        case "path" if ops:
            at = data.draw(st.integers(0, len(ops) - 1))
            ops[at] = ops[at]._replace(path=data.draw(odd_paths))
        case "time":
            message = message._replace(time=data.draw(texts))
        case "prevData":
            message = message._replace(prev_data=data.draw(st.none() | st.sampled_from(names)))
        case "did":
            message = message._replace(did="did:web:example.com")
        case "rev":
            message = message._replace(rev="3l3qo2vutsw2a")
        case "root":
            message = message._replace(commit=data.draw(st.sampled_from(names)))
        case "more":
            ops.append(RepoOp("delete", "com.example.zzz/a", None, None))
        case "raw":
            blocks = {Cid.of(block, RAW): block for block in blocks.values()}
            message = message._replace(blocks=car.write_car([message.commit], blocks.items()))
    message = message._replace(ops=tuple(ops))
    same(verify, message, message.ops, key)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("record", "accepted"),
    [
        ({"$type": "a", "links": [Cid.of(b""), Cid.of(b"", RAW)], "bytes": bytes(range(7))}, True),
        ({"text": "\"\\/\b\f\n\r\t\x00\x1f\x7fü€😀\u2028"}, True),
        ({"numbers": [0, 23, 24, 255, 256, 65_536, 2**32, 2**63 - 1]}, True),
        ({"numbers": [-1, -24, -25, -(2**63)]}, True),
        ({"a": None, "b": True, "c": False, "d": [], "e": {}}, True),
        ({f"{number:04d}": number for number in range(3_000)}, True),
        (deep(32), True),
        (deep(33), False),
        ({"text": "x" * 65_600}, False),
        ({"text": "x" * 65_000}, True),
    ],
)  # fmt: skip
def test_records(record: Any, accepted: bool) -> None:
    block = cbor.encode(record)
    tree = Tree()
    op = RepoOp("create", "com.example.record/a", Cid.of(block), None)
    nodes = tree.apply([Change(op.path, op.cid, None)])
    message = message_of([op], tree.root, Tree().root, {**nodes, op.cid: block})  # type: ignore[dict-item]
    for verify in MODES:
        assert same(verify, message, message.ops, KEY.public) is accepted


@pytest.mark.parametrize(
    "text",
    [b"\x80", b"\xc0\x80", b"\xc1\xbf", b"\xc3", b"\xc3(", b"\xe0\x80\x80", b"\xe2\x82",
     b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80",
     b"\xf5\x80\x80\x80", b"\xff", b"a\xf0\x9f\x98"],
)  # fmt: skip
def test_texts_that_are_no_utf8_are_left_to_python(text: bytes) -> None:
    block = b"\xa1\x61a" + bytes([0x60 + len(text)]) + text
    op = RepoOp("create", "com.example.record/a", Cid.of(block), None)
    tree = Tree()
    nodes = tree.apply([Change(op.path, op.cid, None)])
    message = message_of([op], tree.root, Tree().root, {**nodes, Cid.of(block): block})
    assert prove(message, 2) is None
    assert not same("none", message, message.ops, KEY.public)


def test_two_hundred_operations_and_many_more_blocks() -> None:
    held = {f"com.example.record/{number:04d}": Cid.of(b"%d" % number) for number in range(3_000)}
    tree = Tree.build(held)
    before = tree.root
    tree.take_new_blocks()
    record = cbor.encode({})
    ops = []
    for number in range(0, 3_000, 15):
        path = f"com.example.record/{number:04d}"
        match number % 4:
            case 0:
                ops.append(RepoOp("delete", path, None, held[path]))
            case 1:
                ops.append(RepoOp("update", path, Cid.of(record), held[path]))
            case _:
                ops.append(RepoOp("create", f"{path}-new", Cid.of(record), None))
    nodes = tree.apply([Change(op.path, op.cid, op.prev) for op in ops])
    blocks = {**nodes, Cid.of(record): record}
    assert same("full", message_of(ops, tree.root, before, blocks), tuple(ops), KEY.public)
    blocks |= {Cid.of(b"%d" % number): b"%d" % number for number in range(3_500)}
    assert same("full", message_of(ops, tree.root, before, blocks), tuple(ops), KEY.public)
    blocks |= {Cid.of(b"%d" % number): b"%d" % number for number in range(5_000)}
    assert not same("full", message_of(ops, tree.root, before, blocks), tuple(ops), KEY.public)


def test_the_first_and_the_last_record_of_a_repo() -> None:
    path, block = "com.example.record/a", cbor.encode({})
    tree, empty = Tree(), Tree().root
    nodes = {**tree.apply([Change(path, Cid.of(block), None)]), Cid.of(block): block}
    first = message_of([RepoOp("create", path, Cid.of(block), None)], tree.root, empty, nodes)
    assert same("full", first, first.ops, KEY.public)
    root = tree.root
    nodes = tree.apply([Change(path, None, Cid.of(block))])
    last = message_of([RepoOp("delete", path, None, Cid.of(block))], tree.root, root, nodes)
    assert tree.root == empty
    assert same("full", last, last.ops, KEY.public)


def test_no_more_bytes_than_allowed_come_of_a_commit() -> None:
    path, block = "com.example.record/a", cbor.encode({"text": "x" * 100})
    tree = Tree()
    nodes = tree.apply([Change(path, Cid.of(block), None)])
    message = message_of(
        [RepoOp("create", path, Cid.of(block), None)], tree.root, Tree().root,
        {**nodes, Cid.of(block): block},
    )  # fmt: skip
    found = prove(message, 2)
    assert found is not None
    size = sum(map(len, found[3]))
    assert prove(message, 2, most=size) == found
    assert prove(message, 2, most=size - 1) is None


def test_each_of_many_is_found_in_its_place() -> None:
    frames = [real for real in real_commits() if real[1].curve == "k256"][:20]
    bad = frames[3][0]._replace(blocks=frames[3][0].blocks[:-1])
    given_commits = [(message, message.ops, key.secp256k1) for message, key in frames]
    given_commits[3] = (bad, bad.ops, None)
    given_commits[5] = (given_commits[5][0], given_commits[5][1][:0], None)
    done = compiled.prove(given_commits, 2, MAX_FRAME_OUTPUT)
    assert done is not None
    assert done[0] == [
        None if place == 3 else prove(message, 2, ops, None if held is None else frames[place][1])
        for place, (message, ops, held) in enumerate(given_commits)
    ]
    assert compiled.prove([], 2, 1) == ([], (0.0, 0.0, 0.0))


def test_arguments_that_are_no_commits_are_refused() -> None:
    message = real_commits()[0][0]
    assert message.ops
    for wrong, ops, key in [
        (message._replace(rev="3l3"), message.ops, None),
        (message._replace(seq=-1), message.ops, None),
        (message._replace(commit=Cid(b"short")), message.ops, None),
        (message[:1], message.ops, None),
        (message, (*message.ops, RepoOp("delete", "a/b", None, None)), None),
        (message, message.ops, b"short"),
        (message, message.ops, "text"),
        ((), (), None),
    ]:
        with pytest.raises((TypeError, ValueError, IndexError)):
            compiled.prove([(wrong, ops, key)], 2, 1)  # type: ignore[list-item]


def real_commits() -> list[tuple[CommitMessage, PublicKey]]:
    folder = data_at("fixtures/jetstream/corpus")
    documents = corpus_documents(folder)
    found = []
    for raw in corpus_frames(folder):
        message = decode_frame(raw)
        if type(message) is CommitMessage:
            key = parse_did_document(documents[message.did], message.did).signing_key
            assert key is not None
            found.append((message, key))
    return found


def test_every_real_commit_is_proven() -> None:
    commits = real_commits()
    assert len(commits) == 148
    for message, key in commits:
        for verify in MODES:
            assert same(verify, message, message.ops, key)


@pytest.mark.parametrize("instructions", [True, False])
def test_hashes(instructions: bool) -> None:
    data = bytes(number * 7 & 255 for number in range(400))
    for size in [*range(200), 400]:
        found = compiled.digest(data[:size], instructions)
        assert found == sha256(data[:size]).digest()


@pytest.fixture
def threads_that_never_yield() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1_000)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("threads_that_never_yield")
def test_others_go_on_meanwhile() -> None:
    message, key = next(real for real in real_commits() if real[1].curve == "k256")
    many = [(message, message.ops, key.secp256k1)] * 3_000
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(compiled.prove(many, 2, 10**6)))
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
        time.sleep(0.001)
    assert [each[1] for each in found[0][0]] == [True] * 3_000
    assert turns > 5
