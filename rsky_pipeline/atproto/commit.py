"""Signed commits, version 3. https://atproto.com/specs/repository#commit-objects"""

from dataclasses import dataclass

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.crypto import PrivateKey, PublicKey
from rsky_pipeline.atproto.errors import InvalidData
from rsky_pipeline.atproto.syntax import is_did, is_tid

VERSION = 3
_KEYS = {"did", "version", "data", "rev", "prev", "sig"}


@dataclass(frozen=True, slots=True)
class Commit:
    """The root object of a repo."""

    did: str
    rev: str
    data: Cid  # root of the MST
    prev: Cid | None
    sig: bytes
    version: int = VERSION


def parse_commit(block: bytes) -> Commit:
    """Read a commit block.

    Exactly the six keys of version 3 are accepted: implementations differ in what they sign when
    there are others. Raises InvalidData.
    """
    value = cbor.decode_strict(block)
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise InvalidData("commit_version", "not a version 3 commit")
    if value.keys() != _KEYS:
        raise InvalidData("commit_fields", "a commit has exactly six fields")
    did, rev, data, prev, sig = (value[key] for key in ("did", "rev", "data", "prev", "sig"))
    if not isinstance(did, str) or not is_did(did):
        raise InvalidData("commit_fields", "did is not a DID")
    if not isinstance(rev, str) or not is_tid(rev):
        raise InvalidData("commit_fields", "rev is not a TID")
    if not isinstance(data, Cid) or not (prev is None or isinstance(prev, Cid)):
        raise InvalidData("commit_fields", "data or prev is not a link")
    if type(sig) is not bytes:
        raise InvalidData("commit_fields", "sig is not bytes")
    return Commit(did, rev, data, prev, sig)


def unsigned_bytes(commit: Commit) -> bytes:
    """Return what a commit's signature is over."""
    return _unsigned(commit.did, commit.rev, commit.data, commit.prev)


def verify_commit(commit: Commit, key: PublicKey) -> bool:
    """Tell whether a commit was signed with a key."""
    return key.verify(unsigned_bytes(commit), commit.sig)


def sign_commit(did: str, rev: str, data: Cid, prev: Cid | None, key: PrivateKey) -> bytes:
    """Return the block of a new signed commit."""
    sig = key.sign(_unsigned(did, rev, data, prev))
    return cbor.encode(
        {"did": did, "version": VERSION, "data": data, "rev": rev, "prev": prev, "sig": sig}
    )


def _unsigned(did: str, rev: str, data: Cid, prev: Cid | None) -> bytes:
    return cbor.encode({"did": did, "version": VERSION, "data": data, "rev": rev, "prev": prev})
