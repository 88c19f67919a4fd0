"""Identifiers: DIDs, handles, NSIDs, record keys, TIDs, paths and AT URIs.

https://atproto.com/specs/at-uri-scheme and the specifications it refers to.
"""

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from rsky_pipeline.atproto import compiled
from rsky_pipeline.atproto.rules import KEY_LETTERS, MAX_RKEY

_DID = re.compile(r"did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]")
_PLC_ACCOUNT = re.compile(r"did:plc:[a-z2-7]{24}")
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HANDLE = re.compile(rf"(?:{_LABEL}\.)+[a-zA-Z](?:[a-zA-Z0-9-]{{0,61}}[a-zA-Z0-9])?")
_NSID = re.compile(
    r"[a-zA-Z](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
    r"(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)+"
    r"\.[a-zA-Z][a-zA-Z0-9]{0,62}"
)
# The letters of an AT URI are checked with it: only these, and no others, are in its parts.
_AT_URI = re.compile(
    r"at://(?P<authority>[^/?#]+)(?:/(?P<collection>[^/?#]+)(?:/(?P<rkey>[^/?#]+))?)?(?P<end>/)?"
    r"(?P<query>\?[^#]*)?(?:#(?P<pointer>/[^?#\\]*))?"
)
_AT_URI_LETTERS = re.compile(r"[a-zA-Z0-9._~:@!$&'()*+,;=%/\\\[\]#?-]*")
_RKEY = re.compile(rf"[{re.escape(KEY_LETTERS)}]{{1,{MAX_RKEY}}}")
_BARE_PERCENT = re.compile(r"%(?![0-9a-fA-F]{2})")
_TID = re.compile(r"[234567abcdefghij][234567a-z]{12}")
_REV = re.compile(r"[234567abcdefghij][234567a-z]{10,12}")
_TIME_LETTERS = 11  # of a TID; the clock id has the other two
_TID_ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"
_TID_DIGITS = str.maketrans(_TID_ALPHABET, "0123456789abcdefghijklmnopqrstuv")


class AtUri(NamedTuple):
    """An AT URI with all three parts, as records have it."""

    authority: str
    collection: str
    rkey: str


def is_did(text: str) -> bool:
    """Return whether a text is a DID by syntax (any method)."""
    return compiled.is_plc(text) or (len(text) <= 2048 and _DID.fullmatch(text) is not None)


def is_account_did(text: str) -> bool:
    """Return whether a text can be the DID of an account: a did:plc with its 24 letters, a did:web.

    For names that people type; input from the network is judged by `is_did`.
    """
    return _PLC_ACCOUNT.fullmatch(text) is not None or (
        text.startswith("did:web:") and is_did(text)
    )


def is_handle(text: str) -> bool:
    """Return whether a text is a handle by syntax."""
    return len(text) <= 253 and _HANDLE.fullmatch(text) is not None


def is_nsid(text: str) -> bool:
    """Return whether a text is an NSID such as `app.bsky.feed.post`."""
    return len(text) <= 317 and _looks_like_nsid(text)


@lru_cache(maxsize=1_024)  # a few collections make up nearly all paths
def _looks_like_nsid(text: str) -> bool:
    return _NSID.fullmatch(text) is not None


def is_rkey(text: str) -> bool:
    """Return whether a text is a record key."""
    return compiled.is_usual_rkey(text) or (
        _RKEY.fullmatch(text) is not None and text not in {".", ".."}
    )


def is_tid(text: str) -> bool:
    """Return whether a text is a TID."""
    return compiled.tid_value(text) is not None or _TID.fullmatch(text) is not None


def is_rev(text: str) -> bool:
    """Return whether a text can be the rev of a repo: a TID, or one with a shortened clock id.

    Revs of 12 characters occur on real hosts, whose clock ids below 32 lack their leading "2". The
    first 11 characters of both forms are the time, so the order of the texts is that of the times.
    Any other text is no rev: one that sorts above all TIDs would make the repo's later states stale
    for ever.
    """
    return compiled.tid_value(text) is not None or _REV.fullmatch(text) is not None


def rev_microseconds(rev: str) -> int:
    """Return the time of a rev, TID or not, in microseconds since 1970. Raises ValueError."""
    return tid_microseconds(rev[:_TIME_LETTERS] + "22")


def split_path(path: str) -> tuple[str, str] | None:
    """Return collection and rkey of a repo path, or None if it is not one."""
    collection, separator, rkey = path.partition("/")
    if separator and is_rkey(rkey) and is_nsid(collection):
        return collection, rkey
    return None


def parse_at_uri(text: str) -> AtUri | None:
    """Return the parts of `at://AUTHORITY/COLLECTION/RKEY`, or None for anything else."""
    if not text.startswith("at://"):
        return None
    parts = text[5:].split("/")
    if len(parts) != 3 or not all(parts):
        return None
    return AtUri(*parts)


def is_at_uri(text: str, *, strict: bool = True) -> bool:
    """Return whether a text is an AT URI as lexicons demand it: to an account, collection or
    record, or to a part of a record by a JSON pointer; at most 8,192 characters.

    Not `strict` is the rule of the AppView's read path: the record key may have any form, and a
    query and a slash may follow.
    """
    if compiled.is_usual_uri(text):
        return True
    if len(text) > 8192 or _AT_URI_LETTERS.fullmatch(text) is None:
        return False
    parts = _AT_URI.fullmatch(text)
    if parts is None:
        return False
    authority, collection, rkey = parts["authority"], parts["collection"], parts["rkey"]
    if not (is_did(authority) or is_handle(authority)):
        return False
    if collection is not None and not is_nsid(collection):
        return False
    return not strict or (
        parts["end"] is None
        and parts["query"] is None
        and (rkey is None or is_rkey(rkey))
        and _is_percent_encoded(parts["pointer"] or "")
    )


def _is_percent_encoded(text: str) -> bool:
    """Return whether each % in a text begins an encoded byte, and the bytes are UTF-8."""
    if _BARE_PERCENT.search(text):
        return False
    try:
        unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        return False
    return True


def tid_from(microseconds: int, clock_id: int = 0) -> str:
    """Return the TID of a time (since 1970) and a clock id (0 to 1,023)."""
    return tid_text((microseconds << 10) | clock_id)


def tid_number(tid: str) -> int:
    """Return the 64-bit number that a TID writes. Raises ValueError if it is none."""
    number = compiled.tid_value(tid)
    if number is not None:
        return number
    if _TID.fullmatch(tid) is None:
        raise ValueError(f"not a TID: {tid[:50]!r}")
    return int(tid.translate(_TID_DIGITS), 32)


def tid_text(number: int) -> str:
    """Return the TID that writes a number, the inverse of `tid_number`."""
    return "".join(_TID_ALPHABET[(number >> shift) & 31] for shift in range(60, -1, -5))


def tid_microseconds(tid: str) -> int:
    """Return the time of a TID in microseconds since 1970. Raises ValueError if it is none."""
    return tid_number(tid) >> 10
