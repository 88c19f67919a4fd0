"""Merkle search trees: walking one that may be hostile, building one, undoing operations.

https://atproto.com/specs/repository#mst-structure
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.cid import DAG_CBOR, Cid
from rsky_pipeline.atproto.errors import IncompleteTree, InvalidData

MAX_KEY = 1_024
MAX_ENTRIES = 10_000
_KEY = re.compile(rb"[A-Za-z0-9._~:-]+/[A-Za-z0-9._~:-]+")


@dataclass(frozen=True, slots=True)
class Node:
    """A tree node: keys with their values, and the subtrees around them.

    `children` has one more element than `keys`. A child is None where there is nothing, a Cid
    where the subtree is known by its hash only, or a Node.
    """

    layer: int
    keys: tuple[bytes, ...]
    values: tuple[Cid, ...]
    children: "tuple[Node | Cid | None, ...]"


def layer_of(key: bytes) -> int:
    """Return the layer of a key: pairs of leading zero bits of its SHA-256."""
    digest = int.from_bytes(sha256(key).digest(), "big")
    return (256 - digest.bit_length()) // 2


def walk(blocks: Mapping[Cid, bytes], root: Cid) -> Iterator[tuple[str, Cid]]:
    """Yield every path and record CID of a complete tree in key order.

    Raises IncompleteTree for a missing node and InvalidData for one that breaks the structure:
    keys out of order, on the wrong layer or not maximally compressed, empty or repeated nodes.
    Ascending keys over the whole walk also stop trees that reuse a subtree.
    """
    last = b""
    budget = len(blocks) + 1
    stack: list[tuple[Cid, int | None] | tuple[bytes, Cid]] = [(root, None)]
    while stack:
        first, second = stack.pop()
        if not isinstance(first, Cid):
            if first <= last:
                raise InvalidData("mst_order", "keys do not ascend")
            last = first
            assert isinstance(second, Cid)
            yield first.decode("ascii"), second
            continue
        assert not isinstance(second, bytes)
        budget -= 1
        if budget < 0:
            raise InvalidData("mst_repeated", "more nodes visited than there are blocks")
        node = read_node(blocks, first, second)
        if second is None and not node.keys and node.children != (None,):
            raise InvalidData("mst_shape", "the top node is empty")
        if second is not None and not node.keys and node.children == (None,):
            raise InvalidData("mst_shape", "an empty node within the tree")
        for index in range(len(node.children) - 1, -1, -1):
            if index < len(node.keys):
                stack.append((node.keys[index], node.values[index]))
            child = node.children[index]
            if isinstance(child, Cid):
                stack.append((child, node.layer - 1))


def read_node(blocks: Mapping[Cid, bytes], cid: Cid, layer: int | None) -> Node:
    """Read one node; `layer` is what its parent demands, None at the top.

    Raises IncompleteTree or InvalidData.
    """
    block = blocks.get(cid)
    if block is None:
        raise IncompleteTree(f"node {cid}")
    value = cbor.decode_strict(block)
    if not isinstance(value, dict) or value.keys() != {"e", "l"} or type(value["e"]) is not list:
        raise InvalidData("mst_node", f"node {cid} is malformed")
    entries = value["e"]
    if len(entries) > MAX_ENTRIES:
        raise InvalidData("mst_node", f"node {cid} has {len(entries)} entries")
    keys: list[bytes] = []
    values: list[Cid] = []
    children: list[Node | Cid | None] = [_link(value["l"])]
    for entry in entries:
        key, record, child = _entry(entry, keys[-1] if keys else b"")
        keys.append(key)
        values.append(record)
        children.append(child)
    if keys:
        own = layer_of(keys[0])
        if any(layer_of(key) != own for key in keys) or layer not in {None, own}:
            raise InvalidData("mst_layer", f"node {cid} has a key on the wrong layer")
    else:
        own = layer if layer is not None else 0
    if own == 0 and any(child is not None for child in children):
        raise InvalidData("mst_layer", f"node {cid} has children below the bottom")
    return Node(own, tuple(keys), tuple(values), tuple(children))


def _entry(entry: object, previous: bytes) -> tuple[bytes, Cid, Cid | None]:
    if not isinstance(entry, dict) or entry.keys() != {"k", "p", "t", "v"}:
        raise InvalidData("mst_node", "an entry is malformed")
    shared, suffix, record = entry["p"], entry["k"], entry["v"]
    if type(shared) is not int or type(suffix) is not bytes or not isinstance(record, Cid):
        raise InvalidData("mst_node", "an entry is malformed")
    if not 0 <= shared <= len(previous):
        raise InvalidData("mst_prefix", "a prefix is longer than the key before")
    key = previous[:shared] + suffix
    if len(key) > MAX_KEY or _KEY.fullmatch(key) is None:
        raise InvalidData("mst_key", "a key is not collection/rkey")
    if key <= previous:
        raise InvalidData("mst_order", "keys do not ascend within a node")
    if shared != _shared(previous, key):
        raise InvalidData("mst_prefix", "a prefix is not as long as possible")
    return key, record, _link(entry["t"])


def _link(value: object) -> Cid | None:
    if value is None:
        return None
    if not isinstance(value, Cid) or value.codec != DAG_CBOR:
        raise InvalidData("mst_node", "a link to a node is malformed")
    return value


def _shared(left: bytes, right: bytes) -> int:
    limit = min(len(left), len(right))
    for index in range(limit):
        if left[index] != right[index]:
            return index
    return limit


def encode_node(node: Node, cids: Sequence[Cid | None]) -> bytes:
    """Return the block of a node whose children have these CIDs."""
    previous = b""
    entries = []
    for key, record, child in zip(node.keys, node.values, cids[1:], strict=True):
        shared = _shared(previous, key)
        entries.append({"k": key[shared:], "p": shared, "t": child, "v": record})
        previous = key
    return cbor.encode({"e": entries, "l": cids[0]})


# --- persistent trees: every change returns a new node and shares what it did not touch ----------

_EMPTY = Node(0, (), (), (None,))


def insert(node: Node | None, key: bytes, value: Cid, load: "Loader") -> Node:
    """Return the tree with a key set to a value, whether it was there or not."""
    layer = layer_of(key)
    node = node or _EMPTY
    if not node.keys and node.children == (None,):
        return Node(layer, (key,), (value,), (None, None))
    if node.layer < layer:
        left, right = _split(node, key, load)
        sides = (_raise(left, layer - 1), _raise(right, layer - 1))
        return Node(layer, (key,), (value,), sides)
    return _insert(node, key, value, layer, load)


def _raise(node: Node | None, layer: int) -> Node | None:
    """Put pass-through nodes over a subtree until it is on a layer."""
    while node is not None and node.layer < layer:
        node = Node(node.layer + 1, (), (), (node,))
    return node


def _insert(node: Node, key: bytes, value: Cid, layer: int, load: "Loader") -> Node:
    index = _position(node, key)
    if index < len(node.keys) and node.keys[index] == key:
        values = (*node.values[:index], value, *node.values[index + 1 :])
        return Node(node.layer, node.keys, values, node.children)
    child = load(node.children[index], node.layer - 1)
    if node.layer == layer:
        left, right = _split(child, key, load) if child else (None, None)
        return Node(
            layer,
            (*node.keys[:index], key, *node.keys[index:]),
            (*node.values[:index], value, *node.values[index:]),
            (*node.children[:index], left, right, *node.children[index + 1 :]),
        )
    if child is None:
        below = _raise(Node(layer, (key,), (value,), (None, None)), node.layer - 1)
    else:
        below = _insert(child, key, value, layer, load)
    return _with_child(node, index, below)


def remove(node: Node | None, key: bytes, load: "Loader") -> Node | None:
    """Return the tree without a key; None when nothing is left. Raises KeyError."""
    if node is None:
        raise KeyError(key)
    result = _remove(node, key, load)
    while result is not None and not result.keys:
        result = load(result.children[0], result.layer - 1)
    return result


def _remove(node: Node, key: bytes, load: "Loader") -> Node | None:
    index = _position(node, key)
    if index < len(node.keys) and node.keys[index] == key:
        merged = _merge(node.children[index], node.children[index + 1], node.layer - 1, load)
        result = Node(
            node.layer,
            node.keys[:index] + node.keys[index + 1 :],
            node.values[:index] + node.values[index + 1 :],
            (*node.children[:index], merged, *node.children[index + 2 :]),
        )
    else:
        child = load(node.children[index], node.layer - 1)
        if child is None:
            raise KeyError(key)
        result = _with_child(node, index, _remove(child, key, load))
    return result if result.keys or result.children != (None,) else None


def find(node: Node | None, key: bytes, load: "Loader") -> Cid | None:
    """Return the value of a key, or None."""
    while node is not None:
        index = _position(node, key)
        if index < len(node.keys) and node.keys[index] == key:
            return node.values[index]
        node = load(node.children[index], node.layer - 1)
    return None


def _position(node: Node, key: bytes) -> int:
    return bisect_left(node.keys, key)


def _with_child(node: Node, index: int, child: Node | None) -> Node:
    children = (*node.children[:index], child, *node.children[index + 1 :])
    return Node(node.layer, node.keys, node.values, children)


def _split(node: Node | None, key: bytes, load: "Loader") -> tuple[Node | None, Node | None]:
    """Cut a subtree into what is below and what is above a key that it does not hold."""
    if node is None:
        return None, None
    index = _position(node, key)
    below, above = _split(load(node.children[index], node.layer - 1), key, load)
    left = Node(node.layer, node.keys[:index], node.values[:index], (*node.children[:index], below))
    right = Node(
        node.layer, node.keys[index:], node.values[index:], (above, *node.children[index + 1 :])
    )
    return _or_none(left), _or_none(right)


def _or_none(node: Node) -> Node | None:
    return node if node.keys or node.children != (None,) else None


def _merge(
    left: Node | Cid | None, right: Node | Cid | None, layer: int, load: "Loader"
) -> Node | Cid | None:
    """Join two neighbouring subtrees of one layer."""
    if left is None or right is None:
        return right if left is None else left
    first, second = load(left, layer), load(right, layer)
    assert first is not None
    assert second is not None
    middle = _merge(first.children[-1], second.children[0], layer - 1, load)
    return Node(
        layer,
        first.keys + second.keys,
        first.values + second.values,
        (*first.children[:-1], middle, *second.children[1:]),
    )


class Loader:
    """Turns a child that is known by its hash into a node, from a set of blocks."""

    def __init__(self, blocks: Mapping[Cid, bytes]) -> None:
        self._blocks = blocks
        self.used: dict[Cid, bytes] = {}

    def __call__(self, child: Node | Cid | None, layer: int) -> Node | None:
        """Return the node of a child. Raises IncompleteTree or InvalidData."""
        if isinstance(child, Cid):
            node = read_node(self._blocks, child, layer)
            self.used[child] = self._blocks[child]
            return node
        return child


def root_of(node: Node | None, new_blocks: dict[Cid, bytes]) -> Cid:
    """Return the CID of a tree and add the blocks of all nodes that are not yet hashed."""
    node = node or _EMPTY
    cids = [
        root_of(child, new_blocks) if isinstance(child, Node) else child for child in node.children
    ]
    block = encode_node(node, cids)
    cid = Cid.of(block)
    new_blocks[cid] = block
    return cid


@dataclass(frozen=True, slots=True)
class Change:
    """An operation of a commit: the record's CID before and after, None where there is none."""

    path: str
    cid: Cid | None
    prev: Cid | None


def invert(blocks: Mapping[Cid, bytes], root: Cid, changes: Iterable[Change]) -> Cid:
    """Undo a commit's operations on its partial tree and return the root before it.

    The result must equal the commit's `prevData`. Paths are undone last first, the order in which
    the minimal set of blocks suffices; on a missing block deletions are undone first instead.
    Raises IncompleteTree or InvalidData (reason `invalid_operation`).
    """
    ordered = sorted(changes, key=lambda change: change.path, reverse=True)
    try:
        return _invert(blocks, root, ordered)
    except IncompleteTree:
        return _invert(blocks, root, sorted(ordered, key=lambda change: change.cid is not None))


def _invert(blocks: Mapping[Cid, bytes], root: Cid, changes: Iterable[Change]) -> Cid:
    load = Loader(blocks)
    node: Node | None = read_node(blocks, root, None)
    for change in changes:
        key = change.path.encode("ascii", "replace")
        if find(node, key, load) != change.cid:
            raise InvalidData("invalid_operation", f"{change.path[:100]} is not in that state")
        if change.prev is not None:
            node = insert(node, key, change.prev, load)
        elif change.cid is not None:
            node = remove(node, key, load)
    while node is not None and not node.keys and node.children != (None,):
        node = load(node.children[0], node.layer - 1)
    return root_of(node, {})


class Tree:
    """The whole tree of a simulated repo, changed in place and hashed path by path."""

    def __init__(self, blocks: dict[Cid, bytes], root: Cid) -> None:
        self._blocks = blocks
        self.root = root

    @classmethod
    def build(cls, items: Mapping[str, Cid]) -> "Tree":
        """Make the tree of a set of records."""
        blocks: dict[Cid, bytes] = {}
        node: Node | None = None
        load = Loader(blocks)
        for path, cid in items.items():
            node = insert(node, path.encode("ascii"), cid, load)
        return cls(blocks, root_of(node, blocks))

    def blocks(self) -> Iterator[tuple[Cid, bytes]]:
        """Yield the blocks of all nodes of the current tree."""
        stack: list[tuple[Cid, int | None]] = [(self.root, None)]
        while stack:
            cid, layer = stack.pop()
            node = read_node(self._blocks, cid, layer)
            yield cid, self._blocks[cid]
            stack += [(c, node.layer - 1) for c in node.children if isinstance(c, Cid)]

    def apply(self, changes: Sequence[Change]) -> dict[Cid, bytes]:
        """Apply a commit's operations.

        Returns the blocks that the commit must carry: the nodes that are new, and those that
        undoing the operations needs.
        """
        load = Loader(self._blocks)
        node: Node | None = read_node(self._blocks, self.root, None)
        for change in changes:
            key = change.path.encode("ascii")
            if change.cid is not None:
                node = insert(node, key, change.cid, load)
            else:
                node = remove(node, key, load)
        new_blocks: dict[Cid, bytes] = {}
        self.root = root_of(node, new_blocks)
        self._blocks.update(new_blocks)
        return new_blocks | self._proof(changes)

    def _proof(self, changes: Sequence[Change]) -> dict[Cid, bytes]:
        load = Loader(self._blocks)
        node: Node | None = read_node(self._blocks, self.root, None)
        load.used[self.root] = self._blocks[self.root]
        for change in sorted(changes, key=lambda item: item.path, reverse=True):
            key = change.path.encode("ascii")
            find(node, key, load)
            if change.prev is not None:
                node = insert(node, key, change.prev, load)
            elif change.cid is not None:
                node = remove(node, key, load)
        while node is not None and not node.keys and node.children != (None,):
            node = load(node.children[0], node.layer - 1)
        return load.used
