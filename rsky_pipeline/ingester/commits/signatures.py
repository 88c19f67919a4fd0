"""Whether a commit is signed by the account that it names: keys, lookups, verdicts.

The signature alone is checked here, in modes `signature` and `full` of `verify`; `validation` has
the other checks of `full`, and in mode `none` no commit needs a proof.

A commit whose signature is wrong is never written. Nor is one whose account cannot be looked up at
the moment, since a forger could see to that, or does not exist, since mirrors of the directory lag
behind exactly when an account is born; in all cases the repo is queued to be fetched, where the
same check is made without a deadline. The job names the commit's deletions, which the fetched
tree then proves or refutes. So nothing true is lost and nothing false gets in, whether the key was
rotated, the PLC directory is down, or the commit is forged.

A look-up belongs to its account and not to the connection whose frame asked for it: it goes on when
the connection ends, and what it found is there for the next one.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from math import inf
from typing import Protocol

import trio

from rsky_pipeline.atproto.commit import Commit, verify_commit
from rsky_pipeline.atproto.crypto import PublicKey
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.configuration.selection import host_name
from rsky_pipeline.network.directory import IdentityNotFoundError, IdentityUnavailableError
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.runtime.shared_tasks import SharedTasks

_log = logging.getLogger(__name__)

# All frames behind one wait for its lookup. The directory is the operator's choice: when it is
# slow, reading is slow. Hosts of did:web are chosen by strangers, and must not hold up all others.
DIRECTORY_SECONDS = 20.0
STRANGER_SECONDS = 2.0
RETRY_SECONDS = 0.5
MAX_LOOKUPS = 64
MAX_KEYS = 50_000
KEY_SECONDS = 86_400.0
MISSING_SECONDS = 5.0  # an account that does not exist, or has no key, is looked up again after
UNAVAILABLE_SECONDS = 60.0  # an account that could not be looked up is not tried again so soon
REFRESH_SECONDS = 60.0  # bad signatures of an account cost the directory one request in this time


class SignatureStatus(StrEnum):
    """The result of checking a commit's signature; the values are metric labels."""

    VALID = "valid"
    FORGED = "forged"  # not signed by the account
    UNVERIFIED = "unverified"  # its account could not be looked up
    NO_ACCOUNT = "no_account"  # the account does not exist or has no key, as far as is known


class KeyDirectory(Protocol):
    """The part of `network.directory.Directory` that is needed here."""

    async def resolve(self, did: str, force: bool = False) -> DidDocument:
        """Return an account's document; `force` asks past every cache."""

    def forget(self, did: str) -> None:
        """Forget the cached document of an account."""

    def known(self, did: str, force: bool = False) -> DidDocument | None:
        """Return a document that `resolve` would return without asking anybody, else None."""


class SignatureVerifier:
    """Checks signatures with keys from the directory, which it keeps for a while.

    `count_change` is called for each key that has changed, with "yes" or "no": whether `forget` was
    called for its account, as it is for an identity event. `boundary` counts undeclared exceptions;
    a commit whose check raises one is unverified. Look-ups run in the nursery.
    """

    def __init__(
        self,
        directory: KeyDirectory,
        count_change: Callable[[str], object] = lambda _: None,
        boundary: Boundary | None = None,
        nursery: trio.Nursery | None = None,
        key_seconds: float = KEY_SECONDS,
    ) -> None:
        self._key_seconds = key_seconds
        self._directory = directory
        self._boundary = boundary or Boundary()
        self._count_change = count_change
        self._log = ThrottledLog(_log)
        self._keys: OrderedDict[str, tuple[PublicKey, float]] = OrderedDict()
        self._refreshed = _ForAWhile()
        self._unavailable = _ForAWhile()
        self._missing = _ForAWhile()
        self._limiter = trio.CapacityLimiter(MAX_LOOKUPS)
        self._lookups: SharedTasks[None] = SharedTasks(nursery)

    def known_key(self, did: str) -> PublicKey | None:
        """Return the key of an account if it was looked up lately.

        A commit whose signature is good with it is valid; else see `decide_at_once`.
        """
        kept = self._keys.get(did)
        if kept is None or kept[1] < trio.current_time():
            return None
        self._keys.move_to_end(did)
        return kept[0]

    def decide_at_once(self, commit: Commit, failed: PublicKey | None) -> SignatureStatus | None:
        """Return the status of a commit whose signature is not good with a key, or not checked
        (`failed` is None). None if that takes a lookup: see `decide`."""
        # It may be the signature of a new key, unless this one was asked for just now.
        did = commit.did
        if failed and self._refreshed.has(did) and self.known_key(did) == failed:
            return SignatureStatus.FORGED
        return SignatureStatus.UNVERIFIED if self._unavailable.has(did) else None

    async def decide(self, commit: Commit) -> SignatureStatus:
        """Look the key up, past all caches if the signature does not fit the one found."""
        did = commit.did
        while (status := self._status(commit)) is None:
            force = self.known_key(did) is not None  # that key does not fit
            await self._lookups.call((did, force), partial(self._look_up, did, force))
        return status

    def _status(self, commit: Commit) -> SignatureStatus | None:
        """Return what follows from all that was looked up, None if that is not enough."""
        did = commit.did
        key = self.known_key(did)
        if key is not None and verify_commit(commit, key):
            return SignatureStatus.VALID
        if self._unavailable.has(did):
            return SignatureStatus.UNVERIFIED
        if key is not None:
            return SignatureStatus.FORGED if self._refreshed.has(did) else None
        return SignatureStatus.NO_ACCOUNT if self._missing.has(did) else None

    def known_host(self, did: str) -> str:
        """Return the name of an account's host, empty where its document is not at hand."""
        document = self._directory.known(did)
        return "" if document is None else host_name(document.pds)

    def forget(self, did: str) -> None:
        """Have the account's document fetched anew for its next commit."""
        self._directory.forget(did)
        if did in self._keys:  # kept, to notice when it has changed
            self._keys[did] = (self._keys[did][0], -inf)
        self._refreshed.discard(did)
        self._unavailable.discard(did)
        self._missing.discard(did)

    async def _look_up(self, did: str, force: bool) -> None:
        """Look an account up, and keep what comes of it: a key, that there is none, or a failure.

        That there is none is asked once more, past all caches, before it counts.
        """
        key = None
        async with self._limiter:
            try:
                while key is None:
                    key = await self._find_key(did, force)
                    if force:
                        break
                    force = key is None
            except (IdentityUnavailableError, trio.TooSlowError):
                self._unavailable.add(did, UNAVAILABLE_SECONDS)
                return
            except Exception as error:  # noqa: BLE001 - see runtime.boundary
                self._boundary.caught(error, "identity", did=did)
                self._unavailable.add(did, UNAVAILABLE_SECONDS)
                return
        if key is None:
            self._missing.add(did, MISSING_SECONDS)
            self._keys.pop(did, None)
            return
        self._keep(did, key)
        if force:
            self._refreshed.add(did, REFRESH_SECONDS)

    async def _find_key(self, did: str, force: bool) -> PublicKey | None:
        ours = did.startswith("did:plc:")
        with trio.fail_after(DIRECTORY_SECONDS if ours else STRANGER_SECONDS):
            while True:
                try:
                    return (await self._directory.resolve(did, force)).signing_key
                except IdentityNotFoundError:
                    return None
                except IdentityUnavailableError as error:
                    if error.of_account or not ours:
                        raise
                await trio.sleep(RETRY_SECONDS)

    def _keep(self, did: str, key: PublicKey) -> None:
        before = self._keys.get(did)
        if before is not None and before[0] != key:
            announced = "yes" if before[1] == -inf else "no"
            self._count_change(announced)
            self._log.info(
                "signing key of an account changed", key=announced, did=did, announced=announced
            )
        self._keys[did] = (key, trio.current_time() + self._key_seconds)
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
