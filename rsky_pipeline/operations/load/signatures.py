"""Checking many repos' signatures against the DID directory, a bounded number at a time."""

from collections.abc import Sequence

import trio

from rsky_pipeline.atproto.commit import Commit, verify_commit
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.network.directory import (
    Directory,
    IdentityNotFoundError,
    IdentityUnavailableError,
)
from rsky_pipeline.operations.load.outcome import LoadFailed

AT_ONCE = 16
_TRIES = 4
_PAUSE_SECONDS = 1.0


async def unproven(commits: Sequence[Commit], directory: Directory) -> dict[str, LoadFailed]:
    """Return by DID why a commit is not its account's; what is proven is not in it.

    A directory that gives no answer is asked again a few times. A key that was rotated is looked
    up again once.
    """
    failures: dict[str, LoadFailed] = {}
    limit = trio.CapacityLimiter(AT_ONCE)

    async def check(commit: Commit) -> None:
        async with limit:
            try:
                await _check(commit, directory)
            except LoadFailed as failure:
                failures[commit.did] = failure

    async with trio.open_nursery() as nursery:
        for commit in commits:
            nursery.start_soon(check, commit)
    return failures


async def _check(commit: Commit, directory: Directory) -> None:
    document = await _document(commit.did, directory, force=False)
    if _signed_by(commit, document):
        return
    document = await _document(commit.did, directory, force=True)
    if not _signed_by(commit, document):
        reason = "no_key" if document.signing_key is None else "bad_signature"
        raise LoadFailed(reason, "the commit is not signed with the account's key")


async def _document(did: str, directory: Directory, *, force: bool) -> DidDocument:
    for attempt in range(1, _TRIES + 1):
        try:
            return await directory.resolve(did, force)
        except IdentityNotFoundError as error:
            raise LoadFailed("did_not_found", str(error)) from error
        except IdentityUnavailableError as error:
            if attempt == _TRIES:
                raise LoadFailed("did_unavailable", str(error)) from error
        await trio.sleep(attempt * _PAUSE_SECONDS)
    raise AssertionError("not reached")


def _signed_by(commit: Commit, document: DidDocument) -> bool:
    key = document.signing_key
    return key is not None and verify_commit(commit, key)
