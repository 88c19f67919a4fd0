"""The states of repos in memory, in front of the store that keeps them all.

A state counts as soon as its commit is on its way to the writer, which writes both in one step, in
order, for all relays. So what a state makes a replay is always covered by the batch in hand or one
before it, and a cursor that passes the replay never passes what it repeats. If the writer drops
what it holds, all of this is forgotten with it.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from rsky_pipeline.ingester.repo_state import (
    RepoState,
    is_state,
    repo_digest,
    state_key,
)
from rsky_pipeline.runtime.threads import StoreThread
from rsky_pipeline.streams.append import read_fields
from rsky_pipeline.streams.connection import Store

# About 190 bytes each. Unwritten states come on top, bounded by what the writers may hold.
MAX_CACHED = 100_000

Read = Sequence[tuple[str, bytes]]


class ReadStates(Protocol):
    """Reads fields of the store, in the order they are asked for."""

    async def __call__(self, where: Read) -> list[bytes]:
        """Raises StoreUnavailable and StoreRejected."""


def reader(store: Store) -> ReadStates:
    """Return what reads states on a connection of its own."""
    thread = StoreThread()

    async def read(where: Read) -> list[bytes]:
        return await thread.call(partial(read_fields, store, where))

    return read


class RepoStates:
    """Knows the state of every repo that `prefetch` was called for lately."""

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

        Raises StoreUnavailable and StoreRejected.
        """
        names = set(dids)
        digests = [repo_digest(did) for did in names]
        missing = [digest for digest in digests if not self._has(digest)]
        if not missing:
            return
        generation = self._generation
        values = await self._read([state_key(digest) for digest in missing])
        self._lookups += len(missing)
        if generation != self._generation:  # they may be of before the store lost its newest data
            await self.prefetch(names)
            return
        for digest, value in zip(missing, values, strict=True):
            if not self._has(digest):
                self._clean[digest] = value if is_state(value) else b""
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
        """Take over a state, and return what must be written with its commit, by its digest."""
        digest = repo_digest(did)
        self._clean.pop(digest, None)
        self._unwritten[digest] = state
        return digest, state

    def written(self, states: Mapping[bytes, RepoState]) -> None:
        """Take note of what the store has now."""
        for digest, state in states.items():
            if self._unwritten.get(digest) == state:
                self._clean[digest] = self._unwritten.pop(digest)
        self._evict(0)

    def take_lookups(self) -> int:
        """Return how many states were read since this was last called."""
        count, self._lookups = self._lookups, 0
        return count

    def forget(self) -> None:
        """Forget everything, because the writer dropped what it held."""
        self._generation += 1
        self._clean.clear()
        self._unwritten.clear()

    def _has(self, digest: bytes) -> bool:
        return digest in self._unwritten or digest in self._clean

    def _evict(self, just_read: int) -> None:
        excess = len(self._clean) - max(self._max_cached, just_read)
        if excess > 0:
            for digest in list(self._clean)[:excess]:
                del self._clean[digest]
