"""Reading trees that may be hostile out of a set of blocks: single nodes, and whole listings."""

from collections.abc import Iterator
from typing import Protocol

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import IncompleteTreeError, InvalidDataError
from rsky_pipeline.atproto.mst.edit import Child, Load
from rsky_pipeline.atproto.mst.node import Node, parse_block
from rsky_pipeline.atproto.rules import layer_of


class BlockSource(Protocol):
    """Blocks by CID, as of a dict."""

    def get(self, cid: Cid, /) -> bytes | None:
        """Return a block, or None."""

    def __len__(self) -> int:
        """Return how many blocks there are."""


def read_node(blocks: BlockSource, cid: bytes, layer: int | None, *, all_keys: bool = True) -> Node:
    """Read one node; `layer` is what its parent demands, None at the top.

    Without `all_keys` the layer is that of the first key alone. Raises IncompleteTreeError, or
    InvalidDataError for a node that cannot stand there.
    """
    name = Cid(cid)
    block = blocks.get(name)
    if block is None:
        raise IncompleteTreeError(f"node {name}")
    content = parse_block(block)
    keys, children = content.keys, content.children
    if keys:
        own = layer_of(keys[0])
        if all_keys:
            for key in keys:
                if layer_of(key) != own:
                    raise InvalidDataError("mst_layer", f"node {name} has keys of several layers")
        if layer is not None and own != layer:
            raise InvalidDataError("mst_layer", f"node {name} is on the wrong layer")
    elif (layer is None) != (children == [None]):
        # Without keys there is a child to pass on to; only the tree of an empty repo has neither.
        raise InvalidDataError("mst_shape", f"node {name} is empty")
    else:
        own = layer or 0
    if own == 0 and children.count(None) != len(children):
        raise InvalidDataError("mst_layer", f"node {name} has children below the bottom")
    return Node(own, tuple(keys), tuple(content.values), tuple(children), block, name)


def loader(blocks: BlockSource) -> Load:
    """Return what turns children that are known by their hash into nodes, each read once.

    It is for trees of which only a part is there, where keys on a wrong layer prove nothing else.
    """
    known: dict[bytes, Node] = {}

    def load(child: Child, layer: int) -> Node | None:
        if not isinstance(child, bytes):
            return child
        node = known.get(child)
        if node is None or node.layer != layer:
            known[child] = node = read_node(blocks, child, layer, all_keys=False)
        return node

    return load


def walk(blocks: BlockSource, root: Cid) -> Iterator[tuple[str, Cid]]:
    """Yield every path and record CID of a complete tree in key order.

    Raises IncompleteTreeError for a missing node and InvalidDataError for one that breaks the
    structure: keys out of order, on the wrong layer or not maximally compressed, empty or repeated
    nodes. What passes is what building a tree from the yielded pairs would give. The depth is
    bounded, as every node is one layer below its parent and no key is above layer 128.
    """
    budget = len(blocks)
    last = b""
    above: list[tuple[Node, int]] = []
    node, index = read_node(blocks, root, None), 0
    while True:
        child = node.children[index]
        if isinstance(child, bytes):
            above.append((node, index))
            node, index = read_node(blocks, child, node.layer - 1), 0
            budget -= 1
            # Ascending keys stop repeated subtrees too, but only at their first key.
            if budget <= 0:
                raise InvalidDataError("mst_repeated", "more nodes visited than there are blocks")
            continue
        while index == len(node.keys):
            if not above:
                return
            node, index = above.pop()
        key = node.keys[index]
        if key <= last:
            raise InvalidDataError("mst_order", "keys do not ascend")
        last = key
        yield key.decode("ascii"), Cid(node.values[index])
        index += 1
