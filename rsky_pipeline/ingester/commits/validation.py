"""Validating commits: their blocks, the inversion of their operations, and each repo's chain. Pure.

https://atproto.com/specs/sync#firehose-validation-best-practices and proposal 0006 (Sync 1.1).
Signatures are checked in `signatures`; `pipeline.Admission` has the order of all checks.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import Commit, parse_commit
from rsky_pipeline.atproto.errors import IncompleteTreeError, InvalidDataError
from rsky_pipeline.atproto.frame import CommitMessage, RepoOp, SyncMessage
from rsky_pipeline.atproto.mst import Tree, invert, look_up
from rsky_pipeline.ingester.commits.states import (
    DESYNCHRONIZED,
    SHOWS_PREV_DATA,
    RepoState,
    has_data,
    knows_data,
    make_state,
    rev_of,
)
from rsky_pipeline.streams.repo_job import FetchReason

EMPTY_TREE = Tree.build({}).root  # which the first commit of a repo leads back to
FUTURE_SECONDS = 300.0  # a rev may be ahead of our clock by so much, as other programs have it


class UnreadCommit(NamedTuple):
    """A commit whose blocks are still to be read; `raw` is its frame."""

    message: CommitMessage
    raw: bytes
    rev: int
    since: int | None
    ops: tuple[RepoOp, ...]  # on collections that are kept


class CommitProof(NamedTuple):
    """The parts of a commit that prove its signature, and its operations where they are given."""

    commit: Commit | None  # of the account and rev that its message names; None: signature is good
    message: CommitMessage | None = None  # with `blocks`: its operations are to be proven as well
    blocks: Mapping[Cid, bytes] | None = None  # all of the frame, each with its own hash
    tree: Cid | None = None  # that of `prevData`, where its operations were proven to lead back

    @property
    def has_operations(self) -> bool:
        """Whether the operations are or were to be proven, and not the signature alone."""
        return self.blocks is not None or self.tree is not None


class RepoUpdate(NamedTuple):
    """The content of a commit or sync message. Revs are numbers (`syntax.tid_number`)."""

    did: str
    rev: int
    since: int | None = None
    prev_data: Cid | None = None  # not in commits of before Sync 1.1, or left out by the sender
    data: Cid | None = None  # the tree's root; None where the commit object was not read
    kind: Literal["commit", "sync", "too_big"] = "commit"
    ops: tuple[RepoOp, ...] = ()  # on collections that are kept
    problem: FetchReason | None = None  # why the repo must be fetched, whatever else is found
    readable: bool = True  # False: the repo cannot be taken to be at this commit; see `problem`
    proof: CommitProof | None = None  # None where nothing is to be proven


class ChainStep(NamedTuple):
    """The effect of an update: the repo's next state, and why its content must be fetched."""

    state: RepoState
    broken: FetchReason | None


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


def is_future(rev: int, now: float) -> bool:
    """Tell whether a rev is from a time after `now`, in seconds since 1970, beyond clock skew.

    Taken over once, such a rev would make all true commits replays.
    """
    return (rev >> 10) / 1e6 > now + FUTURE_SECONDS


def is_replay(state: RepoState | None, rev: int) -> bool:
    """Tell whether a commit of this rev, or a later one, was taken over before."""
    return state is not None and rev <= int.from_bytes(state[:8], "big")


def check_operations(proof: CommitProof) -> Cid | FetchReason | None:
    """Return the tree that a commit's operations lead back to, or why they are not those it signs.

    MST inversion: that must be the tree of `prevData`. Where the sender left `prevData` out, each
    operation is looked up in the signed tree, and None is returned if the operations cannot be
    undone: an update or deletion without `prev`, or a node that is not there. None is returned as
    well where operations are not checked at all.
    """
    commit, message, blocks, tree = proof
    if commit is None or message is None or blocks is None:
        return tree
    try:
        if message.prev_data is not None:
            before = invert(blocks, commit.data, message.ops)
            return before if before == message.prev_data else FetchReason.INVERSION
        for op in message.ops:
            if look_up(blocks, commit.data, op.path) != op.cid:
                return FetchReason.INVALID_OPERATION
    except IncompleteTreeError:
        return FetchReason.MISSING_NODE
    except InvalidDataError:
        return FetchReason.INVALID_OPERATION
    if any(op.prev is None and op.action != "create" for op in message.ops):
        return None
    try:
        return invert(blocks, commit.data, message.ops)
    except (IncompleteTreeError, InvalidDataError):
        return None


def follow(state: RepoState | None, update: RepoUpdate, before: Cid | None = None) -> ChainStep:
    """Return the step from a repo's state (None if unknown) to a verified update, no replay.

    `before` is the tree that `check_operations` returned. A verified commit is always the new
    baseline, whether it follows or not: the repo is fetched for the missing commits, and whether
    the next commit follows on this one is another question.

    Neither `since` nor `prevData` is signed. So the strictness is not the sender's choice: a commit
    whose operations were checked is compared with the remembered tree whether it has `prevData` or
    not, and one that cannot be undone is a broken chain.
    """
    tree = update.prev_data if before is None else before
    checked = update.proof is not None and update.proof.has_operations
    shows = update.prev_data is not None
    broken: FetchReason | None = None
    if update.kind == "too_big":
        broken = FetchReason.TOO_BIG
    elif update.kind == "sync":
        same = state is not None and update.data is not None and has_data(state, update.data)
        broken = None if same else FetchReason.SYNC
    elif state is None:
        # A repo's first commit follows on nothing; of any other one the beginning is missing.
        first = update.since is None and (not checked or tree == EMPTY_TREE)
        broken = None if first else FetchReason.UNSEEN
    elif update.since != rev_of(state) or (tree is not None and has_data(state, tree) is False):
        broken = FetchReason.BROKEN_CHAIN
    elif tree is None and checked and knows_data(state):
        shown = state[8] & SHOWS_PREV_DATA
        broken = FetchReason.BROKEN_CHAIN if shown else FetchReason.NO_PREV_DATA
    flags = DESYNCHRONIZED if broken else 0
    if shows or (state is not None and state[8] & SHOWS_PREV_DATA):
        flags |= SHOWS_PREV_DATA
    return ChainStep(make_state(update.rev, update.data, flags), broken)
