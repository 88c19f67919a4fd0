"""Verifies a commit's signature. https://atproto.com/specs/repository#commit-objects"""

from collections.abc import Awaitable, Callable

from rsky_pipeline.atproto.commit import Commit, verify_commit
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.repos.repo import RepoError

# Resolves a DID, bypassing the cache if True. Raises RepoError.
LookUp = Callable[[bool], Awaitable[DidDocument]]


async def check_signature(
    commit: Commit,
    document: DidDocument,
    look_up: LookUp,
    retry_after: float | None = None,
    host: str = "",
) -> None:
    """Verify a commit with its account's key; on failure, once more with a fresh DID document.

    The cached document may predate a key rotation, so a mismatch counts only against a fresh one.
    Raises RepoError. Its `retry_after` is the earliest time at which a forced look-up returns
    another document: an attempt before that would fail on the same document.
    """
    if _is_signed(commit, document):
        return
    document = await look_up(True)
    if not _is_signed(commit, document):
        reason = "no_key" if document.signing_key is None else "bad_signature"
        message = "the commit is not signed with the account's key"
        raise RepoError("invalid", reason, message, retry_after, host)


def _is_signed(commit: Commit, document: DidDocument) -> bool:
    key = document.signing_key
    return key is not None and verify_commit(commit, key)
