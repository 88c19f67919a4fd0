"""Merkle search trees: published vectors, and random trees against a second construction."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import IncompleteTree, InvalidData
from rsky_pipeline.atproto.mst import Change, Tree, invert, layer_of, walk
from tests.data import test_data
from tests.data_frames import unpack_zstd

paths = st.integers(0, 400).map(lambda number: f"com.example.record/{number:03d}")
cids = st.integers(0, 50).map(lambda number: Cid.of(b"%d" % number))


@given(st.dictionaries(paths, cids, max_size=60), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_structure_depends_only_on_the_content(items: dict[str, Cid], random: object) -> None:
    shuffled = list(items.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    tree = Tree.build(dict(shuffled))
    assert tree.root == Tree.build(dict(sorted(items.items()))).root
    assert dict(walk(dict(tree.blocks()), tree.root)) == items
    assert list(walk(dict(tree.blocks()), tree.root)) == sorted(items.items())


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_commit_carries_what_its_inversion_needs(data: st.DataObject) -> None:
    items = data.draw(st.dictionaries(paths, cids, max_size=40))
    tree = Tree.build(items)
    for _ in range(3):
        before = tree.root
        changes = []
        for path in data.draw(st.lists(paths, unique=True, min_size=1, max_size=5)):
            new = data.draw(cids) if path not in items else data.draw(st.none() | cids)
            changes.append(Change(path, new, items.get(path)))
            if new is None:
                del items[path]
            else:
                items[path] = new
        carried = tree.apply(changes)
        assert tree.root == Tree.build(items).root
        assert invert(carried, tree.root, changes) == before


def test_layers_of_published_keys() -> None:
    for case in json.loads(test_data("fixtures/interop/mst/key_heights.json").read_text()):
        assert layer_of(case["key"].encode()) == case["height"]


def test_exhaustive_trees_load_and_rebuild() -> None:
    files = sorted(test_data("fixtures/mst-test-suite/cars").glob("*.car"))
    assert len(files) == 128
    for path in files:
        car = read_car(path.read_bytes())
        items = dict(walk(car.blocks, car.roots[0]))
        assert Tree.build(items).root == car.roots[0]


def test_inversion_with_the_published_proof_nodes() -> None:
    folder = test_data("fixtures/mst-test-suite")
    cars = {path.stem: read_car(path.read_bytes()) for path in (folder / "cars").glob("*.car")}
    lines = unpack_zstd(folder / "mst-diff-exhaustive.jsonl.zst").splitlines()
    assert len(lines) == 8192
    for line in lines[::8]:
        case = json.loads(line)
        first, second = (
            cars[case["inputs"][name].rsplit("/", 1)[1].removesuffix(".car")]
            for name in ("mst_a", "mst_b")
        )
        changes = [
            Change(
                op["rpath"],
                Cid.parse(op["new_value"]) if op["new_value"] else None,
                Cid.parse(op["old_value"]) if op["old_value"] else None,
            )
            for op in case["results"]["record_ops"]
        ]
        nodes = {Cid.parse(text) for text in case["results"]["inductive_proof_nodes"]}
        nodes.add(second.roots[0])
        blocks = {cid: second.blocks[cid] for cid in nodes if cid in second.blocks}
        assert invert(blocks, second.roots[0], changes) == first.roots[0], case["_file"]


def test_commit_proof_fixtures() -> None:
    path = test_data("fixtures/interop/firehose/commit-proof-fixtures.json")
    for case in json.loads(path.read_text()):
        leaf = Cid.parse(case["leafValue"])
        tree = Tree.build(dict.fromkeys(case["keys"], leaf))
        assert str(tree.root) == case["rootBeforeCommit"]
        changes = [Change(key, leaf, None) for key in case["adds"]]
        changes += [Change(key, None, leaf) for key in case["dels"]]
        carried = tree.apply(changes)
        assert str(tree.root) == case["rootAfterCommit"]
        listed = {Cid.parse(text) for text in case["blocksInProof"]}
        known = dict(tree.blocks()) | carried
        blocks = {cid: known[cid] for cid in listed if cid in known}
        assert str(invert(blocks, tree.root, changes)) == case["rootBeforeCommit"]


def test_a_missing_node_is_an_incomplete_tree() -> None:
    tree = Tree.build({f"com.example.record/{n}": Cid.of(b"x") for n in range(50)})
    blocks = dict(tree.blocks())
    for cid in blocks:
        rest = {key: block for key, block in blocks.items() if key != cid}
        with pytest.raises(IncompleteTree):
            list(walk(rest, tree.root))


def test_a_wrong_operation_does_not_invert() -> None:
    items = {f"com.example.record/{n}": Cid.of(b"x") for n in range(20)}
    tree = Tree.build(items)
    carried = tree.apply([Change("com.example.record/new", Cid.of(b"y"), None)])
    with pytest.raises(InvalidData) as error:
        invert(carried, tree.root, [Change("com.example.record/new", Cid.of(b"z"), None)])
    assert error.value.reason == "invalid_operation"
