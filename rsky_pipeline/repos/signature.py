"""Whether the account signed the commit of a repo. https://atproto.com/specs/repository#commit-objects"""

from collections.abc import Awaitable, Callable

from rsky_pipeline.atproto.commit import Commit, verify_commit
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.repos.repo import RepoError

# Returns the document of a DID; looks it up anew if True. Raises RepoError.
LookUp = Callable[[bool], Awaitable[DidDocument]]


async def check_signature(
    commit: Commit,
    document: DidDocument,
    look_up: LookUp,
    retry_after: float | None = None,
    host: str = "",
) -> None:
    """Check a commit against its account's key, and once more against a fresh document.

    The key may have been rotated since the document was read: then only a new look-up proves what
    the account signed. Raises RepoError: after `retry_after` seconds a look-up gives another
    document at the earliest, so a next attempt must not come sooner and be failed by the same one.
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
