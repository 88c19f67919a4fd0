"""Merkle search trees against published vectors."""

import json

import pytest

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.car import Car, read_car
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import IncompleteTreeError
from rsky_pipeline.atproto.mst import Change, Tree, invert, walk
from rsky_pipeline.atproto.mst.node import shared_length
from rsky_pipeline.atproto.rules import layer_of
from tests.data import test_data
from tests.data_frames import unpack_zstd
from tests.unit.atproto.trees import apply_in_order


def test_layers_of_published_keys() -> None:
    for case in json.loads(test_data("fixtures/interop/mst/key_heights.json").read_text()):
        assert layer_of(case["key"].encode()) == case["height"]


def test_layers_of_the_example_keys() -> None:
    keys = test_data("fixtures/interop/mst/example_keys.txt").read_text().split()
    assert len(keys) == 156
    for key in keys:
        assert layer_of(key.encode()) == int(key[1])


def test_common_prefixes() -> None:
    for case in json.loads(test_data("fixtures/interop/mst/common_prefix.json").read_text()):
        assert shared_length(case["left"].encode(), case["right"].encode()) == case["len"]


def test_exhaustive_trees_load_and_rebuild() -> None:
    cars = _exhaustive_cars()
    assert len(cars) == 128
    for car in cars.values():
        (root,) = car.roots
        tree = Tree.build(dict(walk(car.blocks, root)))
        assert tree.root == root
        assert dict(tree.blocks()) == car.blocks


def _exhaustive_cars() -> dict[str, Car]:
    folder = test_data("fixtures/mst-test-suite/cars")
    return {path.name: read_car(path.read_bytes()) for path in folder.glob("*.car")}


def _cid(text: str | None) -> Cid | None:
    return None if text is None else Cid.parse(text)


def test_published_differences() -> None:
    """Every case: the root after, the new nodes, and inversion with the least possible nodes."""
    cars = _exhaustive_cars()
    items = {name: dict(walk(car.blocks, car.roots[0])) for name, car in cars.items()}
    path = test_data("fixtures/mst-test-suite/mst-diff-exhaustive.jsonl.zst")
    lines = unpack_zstd(path).splitlines()
    assert len(lines) == 8_192
    for line in lines:
        case = json.loads(line)
        first, second = (case["inputs"][name].rsplit("/", 1)[1] for name in ("mst_a", "mst_b"))
        before, after = cars[first].roots[0], cars[second].roots[0]
        results = case["results"]
        changes = [
            Change(op["rpath"], _cid(op["new_value"]), _cid(op["old_value"]))
            for op in results["record_ops"]
        ]
        least = {Cid.parse(text) for text in results["inductive_proof_nodes"]}
        blocks = {cid: cars[second].blocks[cid] for cid in {after, *least}}
        assert invert(blocks, after, changes) == before, case["_file"]

        tree = Tree.build(items[first])
        tree.take_new_blocks()
        apply_in_order(tree, changes)
        proof = dict(tree.proof_blocks([change.path for change in changes]))
        new = dict(tree.take_new_blocks())
        assert tree.root == after
        created = {Cid.parse(text) for text in results["created_nodes"]}
        assert new.keys() - cars[first].blocks.keys() == created, case["_file"]
        assert least <= (proof | new).keys() <= cars[second].blocks.keys(), case["_file"]


def test_commit_proof_fixtures() -> None:
    path = test_data("fixtures/interop/firehose/commit-proof-fixtures.json")
    cases = json.loads(path.read_text())
    assert len(cases) == 6
    for case in cases:
        leaf = Cid.parse(case["leafValue"])
        tree = Tree.build(dict.fromkeys(case["keys"], leaf))
        tree.take_new_blocks()
        assert str(tree.root) == case["rootBeforeCommit"]
        changes = [Change(key, leaf, None) for key in case["adds"]]
        changes += [Change(key, None, leaf) for key in case["dels"]]
        carried = tree.apply(changes)
        assert str(tree.root) == case["rootAfterCommit"]
        listed = {Cid.parse(text) for text in case["blocksInProof"]}
        assert listed <= carried.keys()
        blocks = {cid: carried[cid] for cid in listed}
        assert str(invert(blocks, tree.root, changes)) == case["rootBeforeCommit"]


def test_a_slice_of_a_repo_is_an_incomplete_tree() -> None:
    car = read_car(test_data("fixtures/indigo/repos/repo_slice.car").read_bytes())
    record = json.loads(test_data("fixtures/indigo/repos/repo_slice_record.json").read_text())
    assert Cid.parse(record["cid"]) in car.blocks
    data = cbor.decode(car.blocks[car.roots[0]])["data"]
    with pytest.raises(IncompleteTreeError):
        list(walk(car.blocks, data))
