"""Changing a tree without changing its nodes; untouched nodes are shared with the old tree."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.mst.node import Node, replace_child, write_block
from rsky_pipeline.atproto.rules import layer_of

Child: TypeAlias = Node | bytes | None
Load: TypeAlias = Callable[[Child, int], Node | None]


def empty() -> Node:
    """Return the tree of an empty repo."""
    return Node(0, (), (), (None,))


def find(node: Node | None, key: bytes, load: Load) -> bytes | None:
    """Return the value of a key, or None."""
    while node is not None:
        index = bisect_left(node.keys, key)
        if index < len(node.keys) and node.keys[index] == key:
            return node.values[index]
        node = load(node.children[index], node.layer - 1)
    return None


def insert(node: Node | None, key: bytes, value: bytes, load: Load) -> Node:
    """Return the tree with a key set to a value, whether it was there or not."""
    layer = layer_of(key)
    if node is None or node.is_empty:
        return Node(layer, (key,), (value,), (None, None))
    if node.layer >= layer:
        return _insert(node, key, value, layer, load)
    left, right = _split(node, key, load)
    return Node(layer, (key,), (value,), (_raise(left, layer - 1), _raise(right, layer - 1)))


def _insert(node: Node, key: bytes, value: bytes, layer: int, load: Load) -> Node:
    keys, values, children = node.keys, node.values, node.children
    index = bisect_left(keys, key)
    if index < len(keys) and keys[index] == key:
        return Node(node.layer, keys, (*values[:index], value, *values[index + 1 :]), children)
    child = load(children[index], node.layer - 1)
    if node.layer > layer:
        if child is None:
            below = _raise(Node(layer, (key,), (value,), (None, None)), node.layer - 1)
        else:
            below = _insert(child, key, value, layer, load)
        return _with_child(node, index, below)
    return Node(
        layer,
        (*keys[:index], key, *keys[index:]),
        (*values[:index], value, *values[index:]),
        (*children[:index], *_split(child, key, load), *children[index + 1 :]),
    )


def _raise(node: Node | None, layer: int) -> Node | None:
    """Put nodes without keys over a subtree until it is on a layer."""
    while node is not None and node.layer < layer:
        node = Node(node.layer + 1, (), (), (node,))
    return node


def _split(node: Node | None, key: bytes, load: Load) -> tuple[Node | None, Node | None]:
    """Cut a subtree into the parts below and above a key that it does not hold."""
    if node is None:
        return None, None
    index = bisect_left(node.keys, key)
    below, above = _split(load(node.children[index], node.layer - 1), key, load)
    if below is None and index == 0:
        return None, _with_child(node, 0, above)
    if above is None and index == len(node.keys):
        return _with_child(node, index, below), None
    return (
        Node(node.layer, node.keys[:index], node.values[:index], (*node.children[:index], below)),
        Node(
            node.layer, node.keys[index:], node.values[index:], (above, *node.children[index + 1 :])
        ),
    )


def remove(node: Node | None, key: bytes, load: Load) -> Node | None:
    """Return the tree without a key; None when nothing is left. Raises KeyError.

    The top may be left without keys, until `trim`: a later change may add some.
    """
    if node is None:
        raise KeyError(key)
    index = bisect_left(node.keys, key)
    if index < len(node.keys) and node.keys[index] == key:
        merged = _merge(node.children[index], node.children[index + 1], node.layer - 1, load)
        node = Node(
            node.layer,
            node.keys[:index] + node.keys[index + 1 :],
            node.values[:index] + node.values[index + 1 :],
            (*node.children[:index], merged, *node.children[index + 2 :]),
        )
    else:
        child = load(node.children[index], node.layer - 1)
        node = _with_child(node, index, remove(child, key, load))
    return None if node.is_empty else node


def trim(node: Node | None, load: Load) -> Node:
    """Take nodes without keys off the top."""
    while node is not None and not node.keys:
        node = load(node.children[0], node.layer - 1)
    return node or empty()


def _merge(left: Child, right: Child, layer: int, load: Load) -> Child:
    """Join two neighbouring subtrees of one layer."""
    if left is None or right is None:
        return right if left is None else left
    first, second = load(left, layer), load(right, layer)
    if first is None or second is None:
        return None
    middle = _merge(first.children[-1], second.children[0], layer - 1, load)
    return Node(
        layer,
        first.keys + second.keys,
        first.values + second.values,
        (*first.children[:-1], middle, *second.children[1:]),
    )


def _with_child(node: Node, index: int, child: Node | None) -> Node:
    children = node.children
    if child is children[index]:
        return node
    copy = Node(
        node.layer, node.keys, node.values, (*children[:index], child, *children[index + 1 :])
    )
    if node.cid is not None:
        copy.source = node, index
    elif node.source is not None and node.source[1] == index:
        copy.source = node.source
    return copy


def build(items: Sequence[tuple[bytes, bytes, int]], layer: int) -> Node | None:
    """Return the subtree on a layer of sorted keys, given with their values and own layers."""
    if not items:
        return None
    own = [index for index, item in enumerate(items) if item[2] == layer]
    bounds = [-1, *own, len(items)]
    children = tuple(build(items[left + 1 : right], layer - 1) for left, right in pairwise(bounds))
    keys = tuple(items[index][0] for index in own)
    return Node(layer, keys, tuple(items[index][1] for index in own), children)


def seal(node: Node, fresh: dict[Cid, Node]) -> Cid:
    """Write the blocks of all nodes that have none yet, noting them, and return the tree's CID."""
    if node.cid is None:
        cids = [seal(child, fresh) if isinstance(child, Node) else child for child in node.children]
        node.block = _copied_block(node, cids) or write_block(node.keys, node.values, cids)
        node.cid = Cid.of(node.block)
        node.source = None
        fresh[node.cid] = node
    return node.cid


def _copied_block(node: Node, cids: Sequence[bytes | None]) -> bytes | None:
    """Return the block of a node by replacing one link in that of the node it is a copy of.

    Most nodes on the way to a change are such copies, and this costs a tenth of writing them anew.
    """
    if node.source is None:
        return None
    source, index = node.source
    old, new = source.children[index], cids[index]
    if isinstance(old, Node):
        old = old.cid
    if old is None or new is None:
        return None
    return replace_child(source.block, old, new)
