"""What is remembered of each repo: the last commit that was taken over. Pure.

A state is 9 or 17 bytes: the rev as a number (big-endian, so that states sort by rev), a byte of
flags, and the first 8 bytes of the hash of the tree's root where that is known.
"""

from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

from rsky_pipeline.atproto.cid import Cid

RepoState = bytes
KNOWN_DATA = 8  # bytes of a root's hash
DESYNCHRONIZED = 1  # flag: the chain broke here, and the repo was queued to be fetched
INACTIVE = 2  # flag: its account is not active, so that a relay may withhold its commits

# Redis keeps a hash of up to 512 short fields in one compact block: 43 million accounts make 328
# a bucket, and 29 bytes each. A field is 8 bytes of the DID's hash, so that two accounts that
# share one take 2^81 attempts to make.
_BUCKETS = 1 << 17
_KEY = "rsky_pipeline:repo:%05x"
REPO_KEYS = "rsky_pipeline:repo:*"  # the pattern of all of them


class StateKey(NamedTuple):
    """Where the state of a repo is kept: a field of one of many hashes."""

    key: str
    field: bytes


@lru_cache(maxsize=8_192)  # asked for five times for each event
def repo_digest(did: str) -> bytes:
    """Return the 11 bytes that stand for a repo, in memory and for `state_key`."""
    return sha256(did.encode()).digest()[:11]


def state_key(digest: bytes) -> StateKey:
    """Return where the state of a repo is kept."""
    return StateKey(_KEY % (int.from_bytes(digest[8:], "big") % _BUCKETS), digest[:8])


def make_state(rev: int, data: Cid | None, flags: int = 0) -> RepoState:
    """Return the state of a repo at a commit; `data` is None where the commit was not read."""
    head = rev.to_bytes(8, "big") + flags.to_bytes(1, "big")
    return head if data is None else head + data[4 : 4 + KNOWN_DATA]


def is_state(value: bytes) -> bool:
    """Tell whether bytes have the form of a state."""
    return len(value) in {9, 9 + KNOWN_DATA}


def rev_of(state: RepoState) -> int:
    """Return a state's rev as a number."""
    return int.from_bytes(state[:8], "big")


def is_desynchronized(state: RepoState) -> bool:
    """Tell whether the last commit did not follow on the one before."""
    return bool(state[8] & DESYNCHRONIZED)


def is_inactive(state: RepoState) -> bool:
    """Tell whether the account was last said to be inactive, and no commit came since."""
    return bool(state[8] & INACTIVE)


def with_activity(state: RepoState, active: bool) -> RepoState:
    """Return a state with its account's activity noted."""
    flags = state[8] & ~INACTIVE if active else state[8] | INACTIVE
    return state[:8] + flags.to_bytes(1, "big") + state[9:]


def has_data(state: RepoState, data: Cid) -> bool | None:
    """Tell whether a state's tree is this one; None if that is not known."""
    known = state[9:]
    return data[4 : 4 + KNOWN_DATA] == known if known else None
