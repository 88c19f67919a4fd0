"""Listing a complete tree that may be hostile."""

from collections.abc import Iterator

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.mst.load import BlockSource, read_node
from rsky_pipeline.atproto.mst.node import Node


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
            if (
                budget <= 0
            ):  # ascending keys stop repeated subtrees too, but only at their first key
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
