"""Random trees, and blocks of nodes that no honest host would write."""

from typing import Any

from hypothesis import strategies as st

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.mst import Change, Tree
from rsky_pipeline.atproto.rules import layer_of

paths = st.integers(0, 400).map(lambda number: f"com.example.record/{number:03d}")
cids = st.integers(0, 50).map(lambda number: Cid.of(b"%d" % number))
items = st.dictionaries(paths, cids, max_size=60)

LEAF = Cid.of(b"record")


def key_on(layer: int, prefix: str = "a/") -> str:
    """Return the first key with this prefix on a layer."""
    number = 0
    while layer_of(f"{prefix}{number:05d}".encode()) != layer:
        number += 1
    return f"{prefix}{number:05d}"


def entry(key: str, shared: int = 0, tree: Cid | None = None, **more: Any) -> dict[str, Any]:
    """Return an entry of a node, spelled as told."""
    return {"k": key[shared:].encode(), "p": shared, "t": tree, "v": LEAF} | more


def node(*entries: Any, left: Cid | None = None, **more: Any) -> bytes:
    """Return the block of a node with these entries."""
    return cbor.encode({"e": list(entries), "l": left} | more)


def blocks_of(*blocks: bytes) -> dict[Cid, bytes]:
    """Return blocks by their CIDs."""
    return {Cid.of(block): block for block in blocks}


def apply_in_order(tree: Tree, changes: list[Change]) -> None:
    """Change a tree key by key."""
    for change in changes:
        if change.cid is None:
            tree.delete(change.path)
        else:
            tree.set(change.path, change.cid)
