"""Reads the fields of records that columns are made of.

A record comes from strangers. Whatever it holds, reading it either gives a value that PostgreSQL
can store and index, or raises `InvalidRecordError` with a reason that can be counted.
"""

from collections.abc import Mapping, Sequence

import orjson

from rsky_pipeline.atproto.datetimes import EPOCH, normalize
from rsky_pipeline.atproto.syntax import AtUri, is_did, parse_at_uri

Record = Mapping[str, object]

# A B-tree entry holds at most 2,704 bytes. An own uri has at most 300 (DID) + 60 + 512 (rkey)
# bytes, so a reference of this size still fits into an index beside it.
MAX_DID_BYTES = 300
MAX_REFERENCE_BYTES = 1_600
MAX_CID_BYTES = 128


class InvalidRecordError(Exception):
    """A record that cannot be indexed. `reason` is a short code, safe as a metric label."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


def required(record: Record, key: str) -> object:
    """Return the value of a key that must be there."""
    value = record.get(key)
    if value is None:
        raise InvalidRecordError("missing_field", f"{key} is missing")
    return value


def clean(text: str) -> str:
    """Return a text without NUL characters, which PostgreSQL cannot store."""
    return text.replace("\0", "") if "\0" in text else text


def text(record: Record, key: str, max_bytes: int, min_bytes: int = 0) -> str:
    """Return a required text within the byte lengths of its lexicon."""
    value = required(record, key)
    if not isinstance(value, str):
        raise InvalidRecordError("wrong_type", f"{key} is not a text")
    check_length(key, value, max_bytes, min_bytes)
    return clean(value)


def optional_text(record: Record, key: str, max_bytes: int) -> str | None:
    """Return a text within the byte length of its lexicon, or None."""
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidRecordError("wrong_type", f"{key} is not a text")
    check_length(key, value, max_bytes)
    return clean(value)


def check_length(key: str, value: str, max_bytes: int, min_bytes: int = 0) -> None:
    """Raise InvalidRecordError for a text whose UTF-8 form is too long or too short."""
    size = len(value)
    if size * 4 > max_bytes or size < min_bytes:  # four bytes a character at most
        size = len(value.encode("utf-8", "replace"))
        if size > max_bytes:
            raise InvalidRecordError("too_long", f"{key} has {size} bytes, allowed are {max_bytes}")
        if size < min_bytes:
            raise InvalidRecordError("too_short", f"{key} has {size} bytes, needed are {min_bytes}")


def created_at(record: Record) -> str:
    """Return createdAt in the normal form; one that cannot be read becomes 1970, as officially."""
    value = required(record, "createdAt")
    if not isinstance(value, str):
        raise InvalidRecordError("wrong_type", "createdAt is not a text")
    return normalize(value) or EPOCH


def mapping(record: Record, key: str) -> Record | None:
    """Return an object, or None when it is absent."""
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidRecordError("wrong_type", f"{key} is not an object")
    return value


def items(record: Record, key: str, max_items: int) -> Sequence[object]:
    """Return an array of limited length; an absent one is empty."""
    value = record.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidRecordError("wrong_type", f"{key} is not an array")
    if len(value) > max_items:
        raise InvalidRecordError(
            "too_many_items", f"{key} has {len(value)}, allowed are {max_items}"
        )
    return value


def did(record: Record, key: str) -> str:
    """Return a required DID."""
    value = required(record, key)
    if not isinstance(value, str) or not is_did(value):
        raise InvalidRecordError("invalid_did", f"{key} is not a DID")
    return _indexable(key, value)


def uri(record: Record, key: str) -> str:
    """Return a required at:// reference, to a record or to an account."""
    return check_uri(key, required(record, key))


def check_uri(key: str, value: object) -> str:
    """Return the value if it is an at:// reference."""
    if not isinstance(value, str) or not value.startswith("at://") or len(value) == 5:
        raise InvalidRecordError("invalid_uri", f"{key} is not an at:// uri")
    return _indexable(key, value)


def strong_reference(record: Record, key: str) -> tuple[str, str]:
    """Return uri and cid of a required reference to one version of a record."""
    value = required(record, key)
    if not isinstance(value, dict):
        raise InvalidRecordError("wrong_type", f"{key} is not an object")
    cid = required(value, "cid")
    if not isinstance(cid, str) or not 0 < len(cid) <= MAX_CID_BYTES or not cid.isalnum():
        raise InvalidRecordError("invalid_cid", f"{key}.cid is not a CID")
    return check_uri(f"{key}.uri", value.get("uri")), cid


def optional_reference(record: Record, key: str) -> tuple[str | None, str | None]:
    """Return uri and cid of a reference, or two None."""
    if record.get(key) is None:
        return None, None
    return strong_reference(record, key)


def description_facets(record: Record) -> str | None:
    """Return the JSON of `descriptionFacets`, which the tables keep as a text; None if absent."""
    found = record.get("descriptionFacets")
    if found is None:
        return None
    if not isinstance(found, list):
        raise InvalidRecordError("wrong_type", "descriptionFacets is not an array")
    return encode(found)


def encode(value: object) -> str:
    """Return the JSON of a decoded value."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:
        raise InvalidRecordError(
            "too_deep", f"the record cannot be written as JSON: {error}"
        ) from error


def blob_cid(record: Record, key: str) -> str | None:
    """Return the CID of a blob in its current or its legacy form, or None."""
    value = mapping(record, key)
    if value is None:
        return None
    reference = value.get("ref")
    cid = reference.get("$link") if isinstance(reference, dict) else value.get("cid")
    if not isinstance(cid, str) or not 0 < len(cid) <= MAX_CID_BYTES or "\0" in cid:
        raise InvalidRecordError("invalid_blob", f"{key} names no blob")
    return cid


def host(reference: str) -> str:
    """Return the authority of an at:// reference: whose record it is."""
    return reference[5:].partition("/")[0]


def parts(reference: str) -> AtUri | None:
    """Return authority, collection and rkey if the reference names a record."""
    return parse_at_uri(reference)


def _indexable(key: str, value: str) -> str:
    if len(value) > MAX_REFERENCE_BYTES or (
        not value.isascii() and len(value.encode("utf-8", "replace")) > MAX_REFERENCE_BYTES
    ):
        raise InvalidRecordError("too_long", f"{key} has more than {MAX_REFERENCE_BYTES} bytes")
    if "\0" in value:
        raise InvalidRecordError("invalid_uri", f"{key} holds a NUL character")
    return value
