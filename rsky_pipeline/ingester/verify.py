"""Whether a commit was made by the account that it names.

`none` trusts the relay: a record only has to match its hash. `signature` checks that the commit is
signed with the account's current key. That the record belongs to the signed tree is not checked
here; that takes the whole of Sync 1.1.

A commit whose signature is wrong is never written. Nor is one whose account cannot be looked up at
the moment, since a forger could see to that; in both cases the repo is queued to be fetched, where
the same check is made with all the time in the world. So nothing true is lost and nothing false
gets in, whether the key was rotated, the directory is down or somebody lies.
"""

from collections import OrderedDict
from enum import StrEnum
from typing import Protocol

import trio

from rsky_pipeline.atproto.commit import Commit, parse_commit, verify_commit
from rsky_pipeline.atproto.crypto import PublicKey
from rsky_pipeline.atproto.errors import InvalidData
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.ingester.convert import Claim
from rsky_pipeline.network.directory import IdentityNotFound, IdentityUnavailable

LOOKUP_SECONDS = 5.0  # all frames behind this one wait for it
MAX_LOOKUPS = 64
MAX_KEYS = 50_000
KEY_SECONDS = 3_600.0
REFRESH_SECONDS = 60.0  # bad signatures of an account cost the directory one request in this time


class Verdict(StrEnum):
    """What is known of a commit; the values are metric labels."""

    VALID = "valid"
    FORGED = "forged"  # not signed by the account, or not a commit at all
    UNVERIFIED = "unverified"  # its account could not be looked up
    NO_ACCOUNT = "no_account"  # the account does not exist or has no key


class Verifier(Protocol):
    """Decides about commits."""

    def decide_at_once(self, claim: Claim) -> Verdict | None:
        """Return a verdict, or None if that takes a lookup."""

    async def decide(self, claim: Claim) -> Verdict:
        """Return a verdict after looking up what it takes."""

    def forget(self, did: str) -> None:
        """Take note that an account's key may have changed."""


class KeyDirectory(Protocol):
    """What is needed of `network.directory.Directory`."""

    async def resolve(self, did: str, force: bool = False) -> DidDocument:
        """Return an account's document; `force` asks past every cache."""


class SignatureVerifier:
    """Checks signatures with keys from the directory, which it keeps for a while."""

    def __init__(self, directory: KeyDirectory) -> None:
        self._directory = directory
        self._keys: OrderedDict[str, tuple[PublicKey, float]] = OrderedDict()
        self._refreshed: OrderedDict[str, float] = OrderedDict()
        self._lookups = trio.CapacityLimiter(MAX_LOOKUPS)

    def decide_at_once(self, claim: Claim) -> Verdict | None:
        """Return VALID if a known key proves it, FORGED if no key can, else None."""
        commit = _read(claim)
        if commit is None:
            return Verdict.FORGED
        kept = self._keys.get(claim.did)
        if kept is None or kept[1] < trio.current_time():
            return None
        self._keys.move_to_end(claim.did)
        if verify_commit(commit, kept[0]):
            return Verdict.VALID
        # It may be the signature of a new key, unless the key was asked for just now.
        return Verdict.FORGED if self._is_fresh(claim.did) else None

    async def decide(self, claim: Claim) -> Verdict:
        """Look the key up, and past all caches if the signature does not fit the one found."""
        commit = _read(claim)
        if commit is None:
            return Verdict.FORGED
        try:
            with trio.fail_after(LOOKUP_SECONDS):
                async with self._lookups:
                    return await self._look_up(claim.did, commit)
        except (IdentityUnavailable, trio.TooSlowError):
            return Verdict.UNVERIFIED
        except IdentityNotFound:
            return Verdict.NO_ACCOUNT

    def forget(self, did: str) -> None:
        """Have the account's document fetched anew for its next commit."""
        self._keys.pop(did, None)
        self._refreshed.pop(did, None)

    async def _look_up(self, did: str, commit: Commit) -> Verdict:
        # Another frame of the account may have had it looked up while this one waited its turn.
        known = self._keys.get(did)
        if known is not None and known[1] >= trio.current_time():
            if verify_commit(commit, known[0]):
                return Verdict.VALID
            if self._is_fresh(did):
                return Verdict.FORGED
        else:
            document = await self._directory.resolve(did)
            if document.signing_key is not None and verify_commit(commit, document.signing_key):
                self._keep(did, document.signing_key)
                return Verdict.VALID
        document = await self._directory.resolve(did, force=True)
        if document.signing_key is None:
            return Verdict.NO_ACCOUNT
        self._keep(did, document.signing_key)
        self._refreshed[did] = trio.current_time() + REFRESH_SECONDS
        while len(self._refreshed) > MAX_KEYS:
            self._refreshed.popitem(last=False)
        return Verdict.VALID if verify_commit(commit, document.signing_key) else Verdict.FORGED

    def _is_fresh(self, did: str) -> bool:
        return self._refreshed.get(did, 0.0) > trio.current_time()

    def _keep(self, did: str, key: PublicKey) -> None:
        self._keys[did] = (key, trio.current_time() + KEY_SECONDS)
        while len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)


def _read(claim: Claim) -> Commit | None:
    """Return the claimed commit, or None if the block is not one or is of something else."""
    try:
        commit = parse_commit(claim.block)
    except InvalidData:
        return None
    return commit if commit.did == claim.did and commit.rev == claim.rev else None
