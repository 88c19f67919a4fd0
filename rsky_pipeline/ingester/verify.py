"""Whether a commit was made by the account that it names.

`none` trusts the relay: a record only has to match its hash. `signature` checks that the commit is
signed with the account's current key. That the record belongs to the signed tree is not checked
here; that takes the whole of Sync 1.1.

A commit whose signature is wrong is never written. Nor is one whose account cannot be looked up at
the moment, since a forger could see to that; in both cases the repo is queued to be fetched, where
the same check is made with all the time in the world. The job names the commit's deletions, which
the fetched tree then proves or refutes. So nothing true is lost and nothing false gets in, whether
the key was rotated, the directory is down or somebody lies.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from math import inf
from typing import Protocol

import trio

from rsky_pipeline.atproto.commit import Commit, unsigned_bytes, verify_commit
from rsky_pipeline.atproto.crypto import PublicKey, SignatureCheck
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.ingester.convert import Claim
from rsky_pipeline.network.directory import IdentityNotFoundError, IdentityUnavailableError
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.logging import Throttled

_log = logging.getLogger(__name__)

# All frames behind one wait for its lookup. The directory is the operator's choice: when it is
# slow, reading is slow. Hosts of did:web are chosen by strangers, who must not hold everybody up.
DIRECTORY_SECONDS = 20.0
STRANGER_SECONDS = 2.0
RETRY_SECONDS = 0.5
MAX_LOOKUPS = 64
MAX_KEYS = 50_000
KEY_SECONDS = 86_400.0
UNAVAILABLE_SECONDS = 60.0  # an account that could not be looked up is not tried again so soon
REFRESH_SECONDS = 60.0  # bad signatures of an account cost the directory one request in this time


class Verdict(StrEnum):
    """What is known of a commit; the values are metric labels."""

    VALID = "valid"
    FORGED = "forged"  # not signed by the account, or not a commit at all
    UNVERIFIED = "unverified"  # its account could not be looked up
    NO_ACCOUNT = "no_account"  # the account does not exist or has no key


class Verifier(Protocol):
    """Decides about commits."""

    def check(self, claim: Claim) -> SignatureCheck | None:
        """Return the check of a signature that may settle a claim, if its key is known."""

    def decide_at_once(
        self, claim: Claim, check: SignatureCheck | None, good: bool
    ) -> Verdict | None:
        """Return a verdict, or None if that takes a lookup; `good` is what the check has shown."""

    async def decide(self, claim: Claim) -> Verdict:
        """Return a verdict after looking up what it takes."""

    def forget(self, did: str) -> None:
        """Take note that an account's key may have changed."""


class KeyDirectory(Protocol):
    """What is needed of `network.directory.Directory`."""

    async def resolve(self, did: str, force: bool = False) -> DidDocument:
        """Return an account's document; `force` asks past every cache."""

    def forget(self, did: str) -> None:
        """Forget what is cached of an account."""


class SignatureVerifier:
    """Checks signatures with keys from the directory, which it keeps for a while.

    `count_change` is called for each key that is found to be another one than before, and told
    "yes" or "no": whether `forget` was called for it. `boundary` counts exceptions that nobody
    declared; a commit whose check raises one is unverified.
    """

    def __init__(
        self,
        directory: KeyDirectory,
        count_change: Callable[[str], object] = lambda _: None,
        boundary: Boundary | None = None,
    ) -> None:
        self._boundary = boundary or Boundary()
        self._directory = directory
        self._count_change = count_change
        self._throttle = Throttled()
        self._keys: OrderedDict[str, tuple[PublicKey, float]] = OrderedDict()
        self._refreshed = _ForAWhile()
        self._unavailable = _ForAWhile()
        self._lookups = trio.CapacityLimiter(MAX_LOOKUPS)

    def check(self, claim: Claim) -> SignatureCheck | None:
        """Return the check against the key that is known, if one is."""
        commit = claim.commit
        if commit is None or commit.did != claim.did:
            return None
        key = self._known(claim.did)
        return None if key is None else SignatureCheck(key, unsigned_bytes(commit), commit.sig)

    def decide_at_once(
        self, claim: Claim, check: SignatureCheck | None, good: bool
    ) -> Verdict | None:
        """Return what is known without a lookup, or None."""
        commit = claim.commit
        if commit is None or commit.did != claim.did:
            return Verdict.FORGED
        if check is not None:
            if good:
                return Verdict.VALID
            # It may be the signature of a new key, unless this one was asked for just now.
            if self._refreshed.has(claim.did) and self._known(claim.did) == check.key:
                return Verdict.FORGED
        return Verdict.UNVERIFIED if self._unavailable.has(claim.did) else None

    async def decide(self, claim: Claim) -> Verdict:
        """Look the key up, and past all caches if the signature does not fit the one found."""
        commit = claim.commit
        if commit is None or commit.did != claim.did:
            return Verdict.FORGED
        try:
            async with self._lookups:
                if self._unavailable.has(claim.did):
                    return Verdict.UNVERIFIED
                if not claim.did.startswith("did:plc:"):
                    with trio.fail_after(STRANGER_SECONDS):
                        return await self._look_up(claim.did, commit)
                with trio.fail_after(DIRECTORY_SECONDS):
                    return await self._look_up_patiently(claim.did, commit)
        except (IdentityUnavailableError, trio.TooSlowError):
            self._unavailable.add(claim.did, UNAVAILABLE_SECONDS)
            return Verdict.UNVERIFIED
        except IdentityNotFoundError:
            return Verdict.NO_ACCOUNT
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            self._boundary.caught(error, "identity", did=claim.did)
            self._unavailable.add(claim.did, UNAVAILABLE_SECONDS)
            return Verdict.UNVERIFIED

    def forget(self, did: str) -> None:
        """Have the account's document fetched anew for its next commit."""
        self._directory.forget(did)
        if did in self._keys:  # what it was is remembered, to see that it is another one then
            self._keys[did] = (self._keys[did][0], -inf)
        self._refreshed.discard(did)
        self._unavailable.discard(did)

    async def _look_up_patiently(self, did: str, commit: Commit) -> Verdict:
        while True:
            try:
                return await self._look_up(did, commit)
            except IdentityUnavailableError as error:
                if error.of_account:
                    raise
                await trio.sleep(RETRY_SECONDS)

    async def _look_up(self, did: str, commit: Commit) -> Verdict:
        # Another frame of the account may have had it looked up while this one waited its turn.
        known = self._known(did)
        if known is not None:
            if verify_commit(commit, known):
                return Verdict.VALID
            if self._refreshed.has(did):
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
        self._refreshed.add(did, REFRESH_SECONDS)
        return Verdict.VALID if verify_commit(commit, document.signing_key) else Verdict.FORGED

    def _known(self, did: str) -> PublicKey | None:
        """Return the key of an account if it was looked up lately."""
        kept = self._keys.get(did)
        if kept is None or kept[1] < trio.current_time():
            return None
        self._keys.move_to_end(did)
        return kept[0]

    def _keep(self, did: str, key: PublicKey) -> None:
        before = self._keys.get(did)
        if before is not None and before[0] != key:
            announced = "yes" if before[1] == -inf else "no"
            self._count_change(announced)
            held_back = self._throttle.allow(announced)
            if held_back is not None:
                extra = {"did": did, "announced": announced, "unlogged": held_back}
                _log.info("an account signs with another key than before", extra=extra)
        self._keys[did] = (key, trio.current_time() + KEY_SECONDS)
        while len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)


class _ForAWhile:
    """A bounded set of accounts, each remembered for some seconds."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def add(self, did: str, seconds: float) -> None:
        self._until[did] = trio.current_time() + seconds
        self._until.move_to_end(did)
        while len(self._until) > MAX_KEYS:
            self._until.popitem(last=False)

    def has(self, did: str) -> bool:
        return bool(self._until) and self._until.get(did, 0.0) > trio.current_time()

    def discard(self, did: str) -> None:
        self._until.pop(did, None)
