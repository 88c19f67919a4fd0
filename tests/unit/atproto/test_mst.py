"""Merkle search trees: random ones against a second construction, and what commits must carry."""

from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import IncompleteTreeError, InvalidDataError
from rsky_pipeline.atproto.frame import RepoOp
from rsky_pipeline.atproto.mst import Change, Tree, invert, walk
from rsky_pipeline.atproto.rules import layer_of
from tests.unit.atproto.trees import LEAF, apply_in_order, cids, items, key_on, paths


def draw_changes(data: st.DataObject, held: dict[str, Cid], at_most: int = 6) -> list[Change]:
    """Draw the operations of a commit and apply them to what a repo holds."""
    changes = []
    for path in data.draw(st.lists(paths, unique=True, min_size=1, max_size=at_most)):
        new = data.draw(cids) if path not in held else data.draw(st.none() | cids)
        changes.append(Change(path, new, held.get(path)))
        if new is None:
            del held[path]
        else:
            held[path] = new
    return changes


@given(items, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_structure_depends_only_on_the_content(held: dict[str, Cid], random: Random) -> None:
    shuffled = list(held.items())
    random.shuffle(shuffled)
    step_by_step = Tree()
    for path, cid in shuffled:
        step_by_step.set(path, cid)
    built = Tree.build(held)
    assert step_by_step.root == built.root
    assert dict(step_by_step.blocks()) == dict(built.blocks())
    assert list(walk(dict(built.blocks()), built.root)) == sorted(held.items())


@given(items, st.data())
@settings(max_examples=80, deadline=None)
def test_a_store_that_takes_the_new_blocks_stays_complete(
    held: dict[str, Cid], data: st.DataObject
) -> None:
    tree = Tree.build(held)
    store = dict(tree.take_new_blocks())
    assert list(walk(store, tree.root)) == sorted(held.items())
    for _ in range(3):
        apply_in_order(tree, draw_changes(data, held))
        store.update(tree.take_new_blocks())
        assert tree.root == Tree.build(held).root
        assert list(walk(store, tree.root)) == sorted(held.items())
        assert all(tree.get(path) == cid for path, cid in held.items())


@given(items, st.data())
@settings(max_examples=120, deadline=None)
def test_a_commit_carries_what_its_inversion_needs(
    held: dict[str, Cid], data: st.DataObject
) -> None:
    tree = Tree.build(held)
    tree.take_new_blocks()
    for _ in range(3):
        before = tree.root
        changes = draw_changes(data, held)
        apply_in_order(tree, changes)
        proof = dict(tree.proof_blocks([change.path for change in changes]))
        proof.update(tree.take_new_blocks())
        assert proof.keys() <= dict(tree.blocks()).keys()
        assert invert(proof, tree.root, changes) == before


@given(items, st.data())
@settings(max_examples=40, deadline=None)
def test_with_the_whole_tree_any_order_of_changes_inverts(
    held: dict[str, Cid], data: st.DataObject
) -> None:
    tree = Tree.build(held)
    before = tree.root
    changes = draw_changes(data, held, at_most=4)
    carried = tree.apply(changes)
    assert carried.keys() <= dict(tree.blocks()).keys()
    for order in permutations(changes):
        assert invert(dict(tree.blocks()), tree.root, order) == before


@given(items, st.data())
@settings(max_examples=60, deadline=None)
def test_a_wrong_operation_does_not_invert_to_the_root_before(
    held: dict[str, Cid], data: st.DataObject
) -> None:
    tree = Tree.build(held)
    before = tree.root
    changes = draw_changes(data, held, at_most=3)
    tree.apply(changes)
    index = data.draw(st.integers(0, len(changes) - 1))
    right = changes[index]
    wrong = data.draw(
        st.sampled_from(
            [
                Change(right.path, Cid.of(b"other"), right.prev),
                Change(right.path, right.cid, Cid.of(b"other")),
                Change("com.example.record/999", LEAF, None),
                Change("com.example.record/999", None, LEAF),
            ]
        )
    )
    changes[index] = wrong
    try:
        root = invert(dict(tree.blocks()), tree.root, changes)
    except InvalidDataError:
        return
    assert root != before


def test_the_operations_of_a_frame_invert() -> None:
    tree = Tree.build({f"a.b.c/{n}": LEAF for n in range(20)})
    before = tree.root
    carried = tree.apply([Change("a.b.c/new", LEAF, None)])
    assert invert(carried, tree.root, [RepoOp("create", "a.b.c/new", LEAF, None)]) == before


@pytest.mark.parametrize(
    "path", ["", "a", "a/b/c", "/a", "a/", "a/ü", "a/\ud800", "a/" + "b" * 1_023]
)
def test_impossible_paths(path: str) -> None:
    tree = Tree.build({"a/b": LEAF})
    with pytest.raises(InvalidDataError):
        tree.set(path, LEAF)
    with pytest.raises(InvalidDataError):
        invert(dict(tree.blocks()), tree.root, [Change(path, None, LEAF)])


def test_deleting_what_is_not_there() -> None:
    tree = Tree.build({"a/b": LEAF})
    with pytest.raises(KeyError):
        tree.delete("a/c")
    with pytest.raises(KeyError):
        Tree().delete("a/c")


def test_the_empty_tree() -> None:
    tree = Tree()
    assert str(tree.root) == "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm"
    tree.set("a/b", LEAF)
    tree.delete("a/b")
    assert tree.root == Tree.build({}).root == Tree().root
    assert list(walk(dict(tree.blocks()), tree.root)) == []


def test_a_key_far_above_the_others() -> None:
    high, low = key_on(5), [key_on(0, f"{prefix}/") for prefix in "bcd"]
    tree = Tree.build(dict.fromkeys(low, LEAF))
    before = tree.root
    changes = [Change(high, LEAF, None)]
    carried = tree.apply(changes)
    assert tree.root == Tree.build(dict.fromkeys([high, *low], LEAF)).root
    assert invert(carried, tree.root, changes) == before
    tree.delete(high)
    assert tree.root == before


def test_a_missing_node_is_an_incomplete_tree() -> None:
    tree = Tree.build({f"com.example.record/{n}": Cid.of(b"x") for n in range(50)})
    blocks = dict(tree.blocks())
    assert len(blocks) > 5
    for cid in blocks:
        rest = {key: block for key, block in blocks.items() if key != cid}
        with pytest.raises(IncompleteTreeError):
            list(walk(rest, tree.root))


def test_layers() -> None:
    for layer in range(5):
        assert layer_of(key_on(layer).encode()) == layer
