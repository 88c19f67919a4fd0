"""Merkle search trees: walking an untrusted one, building one, undoing operations.

In: blocks by CID, a root, operations. Out: paths with the CIDs of their records, a root, or an
InvalidDataError (IncompleteTreeError where a block is missing). Read `inversion` first. Pure; it
must not know commits or frames.

https://atproto.com/specs/repository#mst-structure. `node` is the form of a node, `edit` changes
trees, `load` reads them; `inversion` and `tree` are the interface.
"""

from rsky_pipeline.atproto.mst.inversion import Change, RepoChange, invert, look_up
from rsky_pipeline.atproto.mst.load import walk
from rsky_pipeline.atproto.mst.tree import Tree

__all__ = [
    "Change",
    "RepoChange",
    "Tree",
    "invert",
    "look_up",
    "walk",
]
