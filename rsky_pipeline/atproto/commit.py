"""Signed commits, version 3. https://atproto.com/specs/repository#commit-objects"""

import re
from dataclasses import dataclass, field

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.crypto import PrivateKey, PublicKey
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.syntax import is_did, is_rev, is_tid

VERSION = 3
_KEYS = {"did", "version", "data", "rev", "prev", "sig"}
# The canonical bytes of nearly all commits. Decoding them, and encoding the signed part again,
# takes twenty times as long as this match does. Every other block goes through the decoder.
_CANONICAL = re.compile(
    rb"\xa6(cdid(?:[\x60-\x77]|\x78[\x18-\xff])(did:[ -~]+)crev\x6d([2-7a-z]{13}))"
    rb"csig\x58\x40(.{64})"
    rb"(ddata\xd8\x2a\x58\x25\x00(\x01\x71\x12\x20.{32})"
    rb"dprev(?:\xf6|\xd8\x2a\x58\x25\x00(\x01[\x71\x55]\x12\x20.{32}))gversion\x03)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Commit:
    """The root object of a repo."""

    did: str
    rev: str
    data: Cid  # root of the MST
    prev: Cid | None
    sig: bytes
    version: int = VERSION
    unsigned: bytes = field(default=b"", repr=False, compare=False)  # the signed bytes, if known


def parse_commit(block: bytes) -> Commit:
    """Read a commit block.

    Exactly the six keys of version 3 are accepted: implementations differ in what they sign when
    there are others. Raises InvalidDataError.
    """
    found = _CANONICAL.fullmatch(block)
    if found is not None:
        commit = _from_parts(found)
        if commit is not None:
            return commit
    return _parse_anything(block)


def _from_parts(found: re.Match[bytes]) -> Commit | None:
    """Return a commit out of its parts; None leaves it to the decoder."""
    start, did, rev, sig, end, data, prev = found.groups()
    length = start[5] if start[4] == 0x78 else start[4] - 0x60
    name, revision = did.decode("ascii"), rev.decode("ascii")
    if length != len(did) or not is_did(name) or not is_tid(revision):
        return None
    prev_cid = None if prev is None else Cid(prev)
    return Commit(name, revision, Cid(data), prev_cid, sig, VERSION, b"\xa5" + start + end)


def _parse_anything(block: bytes) -> Commit:
    value = cbor.decode_strict(block)
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise InvalidDataError("commit_version", "not a version 3 commit")
    if value.keys() != _KEYS:
        raise InvalidDataError("commit_fields", "a commit has exactly six fields")
    did, rev, data, prev, sig = (value[key] for key in ("did", "rev", "data", "prev", "sig"))
    if not isinstance(did, str) or not is_did(did):
        raise InvalidDataError("commit_fields", "did is not a DID")
    if not isinstance(rev, str) or not is_rev(rev):
        raise InvalidDataError("invalid_rev", f"rev is {str(rev)[:50]!r}")
    if not isinstance(data, Cid) or not (prev is None or isinstance(prev, Cid)):
        raise InvalidDataError("commit_fields", "data or prev is not a link")
    if type(sig) is not bytes:
        raise InvalidDataError("commit_fields", "sig is not bytes")
    return Commit(did, rev, data, prev, sig)


def unsigned_bytes(commit: Commit) -> bytes:
    """Return the bytes that a commit's signature is over."""
    return commit.unsigned or _unsigned(commit.did, commit.rev, commit.data, commit.prev)


def verify_commit(commit: Commit, key: PublicKey) -> bool:
    """Return whether a commit was signed with a key."""
    return key.verify(unsigned_bytes(commit), commit.sig)


def sign_commit(did: str, rev: str, data: Cid, key: PrivateKey) -> bytes:
    """Return the block of a new signed commit."""
    sig = key.sign(_unsigned(did, rev, data, None))
    return cbor.encode(
        {"did": did, "version": VERSION, "data": data, "rev": rev, "prev": None, "sig": sig}
    )


def _unsigned(did: str, rev: str, data: Cid, prev: Cid | None) -> bytes:
    return cbor.encode({"did": did, "version": VERSION, "data": data, "rev": rev, "prev": prev})
