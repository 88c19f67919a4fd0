"""The whole tree of a repo in memory, for hosts: simulated ones, and tests."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.mst.edit import (
    Child,
    Load,
    build,
    empty,
    find,
    insert,
    remove,
    seal,
    trim,
)
from rsky_pipeline.atproto.mst.inversion import Change, RepoChange, undo
from rsky_pipeline.atproto.mst.node import Node, is_key
from rsky_pipeline.atproto.rules import layer_of


class Tree:
    """A tree that is changed key by key; only the nodes on a changed key's path are hashed again.

    Not safe for use by several threads at once.
    """

    def __init__(self) -> None:
        self._top: Node = empty()
        self._before: dict[bytes, Cid | None] = {}  # what changed keys held at the last commit
        self._fresh: dict[Cid, Node] = {}

    @classmethod
    def build(cls, items: Mapping[str, Cid]) -> "Tree":
        """Make the tree of a set of records; all its nodes are new."""
        tree = cls()
        rows = sorted((_key(path), bytes(cid)) for path, cid in items.items())
        layered = [(key, value, layer_of(key)) for key, value in rows]
        top = build(layered, max((layer for _, _, layer in layered), default=0))
        tree._top = top or empty()
        return tree

    @property
    def root(self) -> Cid:
        """The CID of the tree as it is now."""
        return seal(self._top, self._fresh)

    def get(self, path: str) -> Cid | None:
        """Return the record at a path, or None."""
        value = find(self._top, _key(path), _in_memory)
        return None if value is None else Cid(value)

    def set(self, path: str, cid: Cid) -> None:
        """Create or update a record. Raises InvalidDataError for a path that cannot be one."""
        key = _key(path)
        self._remember(key)
        self._top = insert(self._top, key, bytes(cid), _in_memory)

    def delete(self, path: str) -> None:
        """Delete a record. Raises KeyError if there is none."""
        key = _key(path)
        self._remember(key)
        self._top = trim(remove(self._top, key, _in_memory), _in_memory)

    def blocks(self) -> Iterator[tuple[Cid, bytes]]:
        """Yield all nodes of the tree as it is now, every node before those below it."""
        _ = self.root
        yield from _nodes(self._top)

    def take_new_blocks(self) -> list[tuple[Cid, bytes]]:
        """Return the nodes that came since this was last called: a commit ends here."""
        _ = self.root
        fresh, self._fresh = self._fresh, {}
        self._before = {}
        return list(_nodes(self._top, fresh))

    def proof_blocks(self, paths: Iterable[str]) -> list[tuple[Cid, bytes]]:
        """Return the nodes of the tree as it is now that prove what these paths hold.

        Call it before `take_new_blocks`. They are the nodes on the way to each path and to the keys
        before and after it, and those that undoing the changes since the last commit meets, so that
        the operations of a commit can be inverted with them.
        """
        seen = _Recorder()
        _ = self.root
        seen(self._top, 0)
        for path in paths:
            _cover(self._top, _key(path), seen)
        changes = [
            Change(key.decode("ascii"), self.get(key.decode("ascii")), before)
            for key, before in sorted(self._before.items(), reverse=True)
        ]
        trim(undo(self._top, changes, seen), seen)
        return list(seen.used.items())

    def apply(self, changes: Sequence[RepoChange]) -> dict[Cid, bytes]:
        """Apply a commit's operations and return the blocks of nodes that the commit must carry."""
        for change in changes:
            if change.cid is not None:
                self.set(change.path, change.cid)
            else:
                self.delete(change.path)
        proof = self.proof_blocks([change.path for change in changes])
        return dict(self.take_new_blocks()) | dict(proof)

    def _remember(self, key: bytes) -> None:
        if key not in self._before:
            value = find(self._top, key, _in_memory)
            self._before[key] = None if value is None else Cid(value)


class _Recorder:
    """Gives away children that are in memory, and remembers those that are known by a hash."""

    def __init__(self) -> None:
        self.used: dict[Cid, bytes] = {}

    def __call__(self, child: Child, layer: int) -> Node | None:
        node = _in_memory(child, layer)
        if node is not None and node.cid is not None:
            self.used[node.cid] = node.block
        return node


def _in_memory(child: Child, _layer: int) -> Node | None:
    if isinstance(child, bytes):
        raise TypeError("a tree in memory has no children that are known by hash only")
    return child


def _key(path: str) -> bytes:
    key = path.encode("utf-8", "replace")
    if not is_key(key):
        raise InvalidDataError("mst_key", f"not collection/rkey: {path[:100]!r}")
    return key


def _cover(node: Node | None, key: bytes, load: Load) -> None:
    """Meet the nodes on the way to a key, and on to the keys before and after it."""
    while node is not None:
        index = bisect_left(node.keys, key)
        below = node.layer - 1
        if index < len(node.keys) and node.keys[index] == key:
            _edge(load(node.children[index], below), -1, load)
            _edge(load(node.children[index + 1], below), 0, load)
            return
        node = load(node.children[index], below)


def _edge(node: Node | None, side: int, load: Load) -> None:
    while node is not None:
        node = load(node.children[side], node.layer - 1)


def _nodes(top: Node, fresh: Mapping[Cid, Node] | None = None) -> Iterator[tuple[Cid, bytes]]:
    """Yield sealed nodes, each before those below it; with `fresh`, only those."""
    stack: list[Child] = [top]
    while stack:
        node = stack.pop()
        if isinstance(node, Node) and node.cid is not None and (fresh is None or node.cid in fresh):
            yield node.cid, node.block
            stack.extend(reversed(node.children))
