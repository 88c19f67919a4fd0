"""Undoing the operations of a commit, to learn which tree it started from."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import IncompleteTreeError, InvalidDataError
from rsky_pipeline.atproto.mst.edit import Load, empty, find, insert, remove, seal
from rsky_pipeline.atproto.mst.load import loader, read_node
from rsky_pipeline.atproto.mst.node import Node, is_key
from rsky_pipeline.atproto.rules import layer_of


class RepoChange(Protocol):
    """What inversion needs of an operation; `RepoOp` of a frame has it, and so has `Change`."""

    @property
    def path(self) -> str:
        """Collection and record key."""

    @property
    def cid(self) -> Cid | None:
        """The record after the commit, None if it is gone."""

    @property
    def prev(self) -> Cid | None:
        """The record before the commit, None if there was none."""


@dataclass(frozen=True, slots=True)
class Change:
    """An operation of a commit: the record's CID before and after, None where there is none."""

    path: str
    cid: Cid | None
    prev: Cid | None


def invert(blocks: Mapping[Cid, bytes], root: Cid, changes: Iterable[RepoChange]) -> Cid:
    """Undo a commit's operations on its partial tree and return the root before it.

    The result must equal the commit's `prevData`. Paths are undone last first, the order in which
    the minimal set of blocks suffices; where a block is missing, other orders are tried, as some
    hosts send what those need. Raises IncompleteTreeError, or InvalidDataError (reason
    `invalid_operation`) when the tree is not in the state that the operations claim.
    """
    given = list(changes)
    last_first = sorted(given, key=lambda change: change.path, reverse=True)
    deletions_first = sorted(last_first, key=lambda change: change.cid is not None)
    try:
        return _invert(blocks, root, last_first)
    except IncompleteTreeError:
        for order in (deletions_first, given):
            try:
                return _invert(blocks, root, order)
            except IncompleteTreeError:
                continue
        raise


def look_up(blocks: Mapping[Cid, bytes], root: Cid, path: str) -> Cid | None:
    """Return the record at a path of a partial tree, or None if there is none.

    A key can only be on its own layer, so that nothing below that must be there. Raises
    InvalidDataError, IncompleteTreeError where a node on the way is missing.
    """
    key = path.encode("utf-8", "replace")
    if not is_key(key):
        raise InvalidDataError("invalid_operation", f"not a path: {path[:100]!r}")
    layer, load = layer_of(key), loader(blocks)
    node: Node | None = read_node(blocks, root, None, all_keys=False)
    while node is not None and node.layer >= layer:
        index = bisect_left(node.keys, key)
        if index < len(node.keys) and node.keys[index] == key:
            return Cid(node.values[index])
        if node.layer == layer:
            return None
        node = load(node.children[index], node.layer - 1)
    return None


def _invert(blocks: Mapping[Cid, bytes], root: Cid, changes: Sequence[RepoChange]) -> Cid:
    load = loader(blocks)
    return _root(undo(read_node(blocks, root, None, all_keys=False), changes, load), load)


def _root(node: Node | None, load: Load) -> Cid:
    """Return the CID of a tree once nodes without keys are taken off its top.

    The node that is then the top need not be there: if it is not one that can be the top, its CID
    is not that of the tree before.
    """
    while node is not None and not node.keys:
        child = node.children[0]
        try:
            node = load(child, node.layer - 1)
        except IncompleteTreeError:
            if isinstance(child, bytes):
                return Cid(child)
            raise
    return seal(node or empty(), {})


def undo(node: Node | None, changes: Iterable[RepoChange], load: Load) -> Node | None:
    """Return the tree before some changes.

    Raises InvalidDataError if they did not lead to this one.
    """
    for change in changes:
        key = change.path.encode("utf-8", "replace")
        if not is_key(key) or find(node, key, load) != change.cid:
            raise InvalidDataError("invalid_operation", f"{change.path[:100]} is not in that state")
        if change.prev is not None:
            node = insert(node, key, change.prev, load)
        elif change.cid is not None:
            node = remove(node, key, load)
    return node
