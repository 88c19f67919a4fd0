"""The state of each repo: the last commit that was taken over.

A state is 9 or 17 bytes: the rev as a number (big-endian, so that states sort by rev), a byte of
flags, and the first 8 bytes of the hash of the tree's root where that is known. Redis has them all;
`RepoStates` keeps those of active repos in memory.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from hashlib import sha256
from typing import NamedTuple, Protocol

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.append import read_fields
from rsky_pipeline.streams.connection import Store

RepoState = bytes
KNOWN_DATA = 8  # bytes of a root's hash
DESYNCHRONIZED = 1  # flag: the chain broke here, and the repo was queued to be fetched
INACTIVE = 2  # flag: its account is not active, so that a relay may withhold its commits
SHOWS_PREV_DATA = 4  # flag: a commit of it had `prevData`, so that one without was stripped of it
OWED = 8  # flag: it is to be fetched for a reason whose rate was used up; see `resync.UnprovenRate`

# Redis keeps a hash of up to 512 short fields in one compact block: 43 million accounts make 328
# a bucket, and 29 bytes each. A field is 8 bytes of the DID's hash, so that two accounts that
# share one take 2^81 attempts to make.
_BUCKETS = 1 << 17
_KEY = "rsky_pipeline:repo:%05x"
REPO_KEYS = "rsky_pipeline:repo:*"  # the pattern of all of them
# About 190 bytes each. Unwritten states come on top, bounded by the memory of the writers.
MAX_CACHED = 100_000


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


def is_inactive(state: RepoState) -> bool:
    """Tell whether the account was last said to be inactive, and no commit came since."""
    return bool(state[8] & INACTIVE)


def with_activity(state: RepoState, active: bool) -> RepoState:
    """Return a state with its account's activity noted."""
    return with_flag(state, INACTIVE, not active)


def with_flag(state: RepoState, flag: int, on: bool) -> RepoState:
    """Return a state with one of its flags set or not."""
    flags = state[8] | flag if on else state[8] & ~flag
    return state[:8] + flags.to_bytes(1, "big") + state[9:]


def has_data(state: RepoState, data: Cid) -> bool | None:
    """Tell whether a state's tree is this one; None if that is not known."""
    known = state[9:]
    return data[4 : 4 + KNOWN_DATA] == known if known else None


def knows_data(state: RepoState) -> bool:
    """Tell whether the tree of a state was read."""
    return len(state) > 9


Read = Sequence[tuple[str, bytes]]


class ReadStates(Protocol):
    """Reads fields of the store, in the order they are asked for."""

    async def __call__(self, where: Read) -> list[bytes]:
        """Raises StoreUnavailableError and StoreRejectedError."""


def reader(link: Link[Store]) -> ReadStates:
    """Return a function that reads states on a connection of its own."""
    return lambda where: link.call(partial(read_fields, where=where))


class RepoStates:
    """The states of the repos that `prefetch` was called for lately.

    A state counts as soon as its commit is on its way to the writer, which writes both in one step,
    in order, for all relays. So whatever a state makes a replay is covered by the batch in hand or
    one before it, and a cursor that passes the replay never passes the commit that it repeats. When
    the writer drops its frames, the states are forgotten with them.
    """

    def __init__(self, read: ReadStates, max_cached: int = MAX_CACHED) -> None:
        self._read = read
        self._max_cached = max_cached
        self._clean: dict[bytes, RepoState] = {}  # as stored; b"" for none; oldest use first
        self._unwritten: dict[bytes, RepoState] = {}
        self._generation = 0
        self._lookups = 0  # states that were not in memory

    def __len__(self) -> int:
        return len(self._clean) + len(self._unwritten)

    async def prefetch(self, dids: Iterable[str]) -> None:
        """Make the states of repos known, with one call for all that are not.

        Raises StoreUnavailableError and StoreRejectedError.
        """
        names = set(dids)
        digests = [repo_digest(did) for did in names]
        clean, unwritten = self._clean, self._unwritten
        missing = [digest for digest in digests if digest not in clean and digest not in unwritten]
        if not missing:
            return
        generation = self._generation
        values = await self._read([state_key(digest) for digest in missing])
        self._lookups += len(missing)
        if generation != self._generation:  # they may be of before the store lost its newest data
            await self.prefetch(names)
            return
        for digest, value in zip(missing, values, strict=True):
            if digest not in clean and digest not in unwritten:
                clean[digest] = value if is_state(value) else b""
        self._evict(len(digests))

    def get(self, did: str) -> RepoState | None:
        """Return the state of a repo, None if there is none. It must have been prefetched."""
        digest = repo_digest(did)
        state = self._unwritten.get(digest)
        if state is None:
            state = self._clean.pop(digest, b"")
            self._clean[digest] = state
        return state or None

    def set(self, did: str, state: RepoState) -> tuple[bytes, RepoState]:
        """Set a state, and return it with its digest, to be written with its commit."""
        digest = repo_digest(did)
        self._clean.pop(digest, None)
        self._unwritten[digest] = state
        return digest, state

    def written(self, states: Mapping[bytes, RepoState]) -> None:
        """Move states that the store has now to those that may be evicted."""
        for digest, state in states.items():
            if self._unwritten.get(digest) == state:
                self._clean[digest] = self._unwritten.pop(digest)
        self._evict(0)

    def take_lookups(self) -> int:
        """Return how many states were read since this was last called."""
        count, self._lookups = self._lookups, 0
        return count

    def forget(self) -> None:
        """Forget all states: they rest on commits that the writer dropped."""
        self._generation += 1
        self._clean.clear()
        self._unwritten.clear()

    def _evict(self, just_read: int) -> None:
        excess = len(self._clean) - max(self._max_cached, just_read)
        if excess > 0:
            for digest in list(self._clean)[:excess]:
                del self._clean[digest]
