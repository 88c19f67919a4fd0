"""Trees that break the rules, and the two readers of nodes against each other."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.cid import RAW, Cid
from rsky_pipeline.atproto.errors import IncompleteTreeError, InvalidDataError
from rsky_pipeline.atproto.mst import walk
from rsky_pipeline.atproto.mst.node import _parse_anything, parse_block, write_block
from rsky_pipeline.atproto.rules import MAX_ENTRIES
from tests.unit.atproto.trees import LEAF, blocks_of, entry, key_on, node, paths

LOW, HIGH = key_on(0, "a/"), key_on(0, "b/")
ABOVE = key_on(1, "b/")
BOTTOM = node(entry(LOW))


def refused(root: bytes, *others: bytes) -> str:
    with pytest.raises(InvalidDataError) as error:
        list(walk(blocks_of(root, *others), Cid.of(root)))
    assert not isinstance(error.value, IncompleteTreeError)
    return error.value.reason


def test_the_vehicle_itself_is_accepted() -> None:
    root = node(entry(ABOVE), left=Cid.of(BOTTOM))
    assert list(walk(blocks_of(root, BOTTOM), Cid.of(root))) == [(LOW, LEAF), (ABOVE, LEAF)]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (node(entry(LOW), more=1), "mst_node"),
        (cbor.encode({"e": []}), "mst_node"),
        (cbor.encode({"e": {}, "l": None}), "mst_node"),
        (cbor.encode({"e": [], "l": "x"}), "mst_node"),
        (cbor.encode([]), "mst_node"),
        (node(1), "mst_node"),
        (node(entry(LOW, x=1)), "mst_node"),
        (node({"k": b"a/b", "p": 0, "v": LEAF}), "mst_node"),
        (node(entry(LOW, v=None)), "mst_node"),
        (node(entry(LOW, v=bytes(LEAF))), "mst_node"),
        (node(entry(LOW, k=LOW)), "mst_node"),
        (node(entry(LOW, p=True)), "mst_node"),
        (node(entry(LOW, t=b"x")), "mst_node"),
        (node(entry(LOW, t=Cid.of(BOTTOM, RAW))), "mst_node"),
        (node(entry(LOW), left=Cid.of(BOTTOM, RAW)), "mst_node"),
        (node(entry(LOW, p=1)), "mst_prefix"),
        (node(entry(LOW, p=-1)), "mst_prefix"),
        (node(entry("a/bc"), entry("b/c"), entry("b/d", k=b"d", p=5)), "mst_prefix"),
        (node(entry("a/b1"), entry("a/b2", 2)), "mst_prefix"),
        (node(entry("a/b1"), entry("a/b1", 4)), "mst_order"),
        (node(entry("a/b2"), entry("a/b1", 3)), "mst_order"),
        (node(entry("b/a"), entry("a/a")), "mst_order"),
        (node(entry("")), "mst_key"),
        (node(entry("a")), "mst_key"),
        (node(entry("a/b/c")), "mst_key"),
        (node(entry("/b")), "mst_key"),
        (node(entry("b/")), "mst_key"),
        (node(entry("a/\x00")), "mst_key"),
        (node(entry("a/ü")), "mst_key"),
        (node(entry("a/" + "b" * 1_023)), "mst_key"),
        (node(entry(LOW), entry(ABOVE)), "mst_layer"),
        (node(entry(LOW), left=Cid.of(BOTTOM)), "mst_layer"),
        (node(left=Cid.of(BOTTOM)), "mst_shape"),
        (b"\xa2al\xf6ae\x80", "not_canonical"),
        (node(entry(LOW)) + b"\x00", "trailing_bytes"),
        (node(entry(LOW))[:-1], "invalid_cbor"),
        (b"", "invalid_cbor"),
        (b"\xa2ae\x98\x01" + BOTTOM[4:], "not_canonical"),
    ],
)
def test_nodes_that_break_a_rule(block: bytes, reason: str) -> None:
    assert refused(block, BOTTOM) == reason


def test_an_entry_more_than_allowed() -> None:
    block = node(*[entry(f"a/{n:05d}", v=LEAF) for n in range(MAX_ENTRIES + 1)])
    assert refused(block) == "mst_node"


def test_subtrees_in_wrong_places() -> None:
    empty = node()
    assert refused(node(entry(ABOVE), left=Cid.of(empty)), empty) == "mst_shape"
    high = node(entry(key_on(0, "c/")))
    assert refused(node(entry(ABOVE), left=Cid.of(high)), high) == "mst_order"
    assert refused(node(entry(ABOVE, tree=Cid.of(BOTTOM))), BOTTOM) == "mst_order"
    top = node(entry(key_on(2, "b/")), left=Cid.of(BOTTOM))
    assert refused(top, BOTTOM) == "mst_layer"
    twice = node(entry(ABOVE, tree=Cid.of(BOTTOM)), left=Cid.of(BOTTOM))
    assert refused(twice, BOTTOM) in {"mst_order", "mst_repeated"}


@pytest.mark.timeout(20)
def test_a_small_file_cannot_name_a_huge_tree() -> None:
    """Each node holds the one below it three times: 3^40 visits without a check."""
    blocks = [BOTTOM]
    for layer in range(1, 6):
        below = Cid.of(blocks[-1])
        keys = sorted(key_on(layer, f"{letter}/") for letter in "cd")
        blocks.append(node(*[entry(key, tree=below) for key in keys], left=below))
    assert refused(blocks[-1], *blocks[:-1]) in {"mst_order", "mst_repeated"}


@pytest.mark.timeout(20)
def test_a_tower_without_keys_ends_at_the_bottom() -> None:
    block = BOTTOM
    blocks = {Cid.of(block): block}
    for _ in range(300):
        block = node(left=Cid.of(block))
        blocks[Cid.of(block)] = block
    root = node(entry(ABOVE), left=Cid.of(block))
    with pytest.raises(InvalidDataError, match="mst_"):
        list(walk(blocks | blocks_of(root), Cid.of(root)))


def test_cycles_end_even_where_hashes_were_not_checked() -> None:
    root = node(entry(ABOVE), left=Cid.of(b"named so, but it is not"))
    blocks = {Cid.of(root): root, Cid.of(b"named so, but it is not"): root}
    with pytest.raises(InvalidDataError):
        list(walk(blocks, Cid.of(root)))


def _read(parse: Any, block: bytes) -> Any:
    try:
        content = parse(block)
    except InvalidDataError:
        return None
    return content and (content.keys, content.values, content.children)


@given(st.lists(st.tuples(paths, st.booleans()), max_size=300, unique_by=lambda pair: pair[0]))
@settings(max_examples=40, deadline=None)
def test_nodes_are_written_as_the_encoder_would(drawn: list[tuple[str, bool]]) -> None:
    rows = sorted((path.encode(), child) for path, child in drawn)
    keys = [key for key, _ in rows]
    children = [None, *[LEAF if child else None for _, child in rows]]
    block = write_block(keys, [LEAF] * len(keys), children)
    assert cbor.decode_strict(block)["l"] is None
    content = _parse_anything(block)
    assert (content.keys, content.children) == (keys, children)
    assert parse_block(block) == content
