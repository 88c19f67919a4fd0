"""What a commit's own blocks prove: that its operations led from the tree before to its tree. Pure.

Source: https://atproto.com/specs/sync#commit-validation and proposal 0006 (Sync 1.1).
"""

from collections.abc import Mapping
from typing import NamedTuple

from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import Commit, parse_commit
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import CommitMessage, RepoOp, SyncMessage
from rsky_pipeline.atproto.mst import invert, look_up


class Contents(NamedTuple):
    """A commit object and the blocks that came with it, all of which have their hashes."""

    commit: Commit
    blocks: Mapping[Cid, bytes]


def read_contents(message: CommitMessage | SyncMessage) -> Contents:
    """Read the blocks of a message and its commit object. Raises InvalidDataError."""
    car = read_car(message.blocks)
    root = car.roots[0]
    if type(message) is CommitMessage and root != message.commit:
        raise InvalidDataError("root_mismatch", "the blocks are not those of the commit")
    block = car.blocks.get(root)
    if block is None:
        raise InvalidDataError("missing_block", f"the commit {root}")
    return Contents(check_commit(parse_commit(block), message), car.blocks)


def check_commit(commit: Commit, message: CommitMessage | SyncMessage) -> Commit:
    """Return a commit if it is the one that a message is about. Raises InvalidDataError."""
    if commit.did != message.did:
        raise InvalidDataError(
            "commit_did", f"of {commit.did[:100]} in a message of {message.did[:100]}"
        )
    if commit.rev != message.rev:
        raise InvalidDataError("commit_rev", f"{commit.rev} in a message of {message.rev}")
    return commit


def check_operations(message: CommitMessage, contents: Contents) -> None:
    """Raise InvalidDataError unless the operations are exactly the difference between two trees.

    Commits of before Sync 1.1 do not say which tree was before: of them, only what each operation
    leads to is looked up in the signed tree. IncompleteTreeError is raised where blocks are
    missing.
    """
    commit, blocks = contents
    if message.prev_data is None:
        for op in message.ops:
            _check_result(op, look_up(blocks, commit.data, op.path))
        return
    before = invert(blocks, commit.data, message.ops)
    if before != message.prev_data:
        raise InvalidDataError("inversion", f"leads back to {before}, not to {message.prev_data}")


def _check_result(op: RepoOp, found: Cid | None) -> None:
    if found != op.cid:
        raise InvalidDataError("invalid_operation", f"{op.path[:100]} is not in that state")
