"""Checking records against schemas, compiled once into functions.

`strict` is the check of the official indexer. `lenient` is that of the AppView's read path:
datetimes without a zone, record keys of any form in references, blobs of any kind and size and in
their legacy form. In both an explicit null is no value, and unknown properties are kept.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import regex

from rsky_pipeline.atproto import compiled
from rsky_pipeline.atproto.datetimes import is_datetime, normalize
from rsky_pipeline.atproto.syntax import is_at_uri, is_did, is_handle, is_nsid
from rsky_pipeline.configuration.settings import Validation
from rsky_pipeline.indexer.collections.fields import InvalidRecordError
from rsky_pipeline.indexer.lexicon.schemas import (
    SCHEMAS,
    Array,
    Blob,
    Boolean,
    Bytes,
    Integer,
    Object,
    Shape,
    Text,
    Union,
)

Check = Callable[[Any], None]  # raises InvalidRecordError

_GRAPHEME = regex.compile(r"\X")
_URI = re.compile(r"\w+:(?:[^\s/][^\s]*|//[^\s]+|/[^\s]*)", re.ASCII)
_LANGUAGE = re.compile(
    r"(?:i|x)(?:-[a-z0-9]{1,8})+|"
    r"(?:[a-z]{2,3}(?:-[a-z]{3}){0,3}|[a-z]{4,8})(?:-[a-z]{4})?(?:-(?:[a-z]{2}|\d{3}))?"
    r"(?:-(?:[a-z0-9]{5,8}|\d[a-z0-9]{3}))*(?:-[a-wy-z0-9](?:-[a-z0-9]{2,8})+)*"
    r"(?:-x(?:-[a-z0-9]{1,8})+)?",
    re.ASCII | re.IGNORECASE,
)
_RAW_CID = re.compile(r"bafkrei[a-z2-7]{52}")  # version 1, raw, SHA-256, base32
_CID = re.compile(r"[A-Za-z0-9]{8,128}")


@cache
def checker(nsid: str, validation: Validation) -> Callable[[Mapping[str, object]], None] | None:
    """Return the check of a collection's records (raises InvalidRecordError), None without any."""
    schema = SCHEMAS.get(nsid)
    if schema is None:
        return None
    return _compile(schema, "", strict=validation == "strict")


def _compile(shape: Shape, path: str, *, strict: bool) -> Check:
    """Return the check of a value; `path` is its place, for errors."""
    match shape:
        case Text():
            return _text(shape, path, strict)
        case Integer():
            return _integer(shape, path)
        case Boolean():
            return _boolean(path)
        case Bytes():
            return _bytes(shape, path)
        case Blob():
            return _blob(shape, path, strict)
        case Array():
            return _array(shape, path, strict)
        case Object():
            return _object(shape, path, strict)
        case Union():
            return _union(shape, path, strict)


def _text(shape: Text, path: str, strict: bool) -> Check:
    formats = _STRICT if strict else _LENIENT
    is_valid = formats.get(shape.format)
    reason = _REASONS.get(shape.format, "")
    most, least, graphemes = shape.max_bytes, shape.min_bytes, shape.max_graphemes

    def check(value: Any) -> None:
        if type(value) is not str:
            raise InvalidRecordError("wrong_type", f"{path} is not a text")
        if is_valid is not None and not is_valid(value):
            raise InvalidRecordError(reason, f"{path} is {value[:100]!r}")
        size = len(value)
        if (most and size * 4 > most) or size < least:
            size = len(value.encode("utf-8", "replace"))
            if most and size > most:
                raise InvalidRecordError("too_long", f"{path} has {size} bytes, allowed are {most}")
            if size < least:
                raise InvalidRecordError(
                    "too_short", f"{path} has {size} bytes, needed are {least}"
                )
        # Most texts have fewer characters than graphemes are allowed.
        if graphemes and len(value) > graphemes:
            count = sum(1 for _ in _GRAPHEME.finditer(value))
            if count > graphemes:
                message = f"{path} has {count} graphemes, allowed are {graphemes}"
                raise InvalidRecordError("too_long", message)

    return check


def _integer(shape: Integer, path: str) -> Check:
    def check(value: Any) -> None:
        if type(value) is not int:
            raise InvalidRecordError("wrong_type", f"{path} is not a whole number")
        if shape.minimum is not None and value < shape.minimum:
            raise InvalidRecordError("out_of_range", f"{path} is {value}, at least {shape.minimum}")

    return check


def _boolean(path: str) -> Check:
    def check(value: Any) -> None:
        if type(value) is not bool:
            raise InvalidRecordError("wrong_type", f"{path} is neither true nor false")

    return check


def _bytes(shape: Bytes, path: str) -> Check:
    def check(value: Any) -> None:
        held = value.get("$bytes") if type(value) is dict else None
        if type(held) is not str:
            raise InvalidRecordError("wrong_type", f"{path} is not bytes")
        size = len(held.rstrip("=")) * 3 // 4
        if shape.max_bytes and size > shape.max_bytes:
            raise InvalidRecordError("too_long", f"{path} has {size} bytes")

    return check


def _blob(shape: Blob, path: str, strict: bool) -> Check:
    prefixes = tuple(kind.removesuffix("*") for kind in shape.accept)

    def check(value: Any) -> None:
        if type(value) is not dict:
            raise InvalidRecordError("invalid_blob", f"{path} is no blob")
        reference, kind, size = value.get("ref"), value.get("mimeType"), value.get("size")
        if value.get("$type") != "blob":
            legacy = type(value.get("cid")) is str and type(kind) is str
            if strict or not legacy:
                raise InvalidRecordError("invalid_blob", f"{path} is no blob")
            return
        link = reference.get("$link") if type(reference) is dict else None
        if type(link) is not str or type(kind) is not str or type(size) is not int:
            raise InvalidRecordError("invalid_blob", f"{path} names no blob")
        if not strict:
            return
        if size < 0 or not _RAW_CID.fullmatch(link):
            raise InvalidRecordError(
                "invalid_blob", f"{path} names no raw block, or its size is wrong"
            )
        if size > shape.max_size:
            raise InvalidRecordError("invalid_blob", f"{path} has {size} bytes")
        if not kind.startswith(prefixes):
            raise InvalidRecordError("invalid_blob", f"{path} is of the kind {kind[:50]}")

    return check


def _array(shape: Array, path: str, strict: bool) -> Check:
    item, most = _compile(shape.item, f"{path}[]", strict=strict), shape.max_items

    def check(value: Any) -> None:
        if type(value) is not list:
            raise InvalidRecordError("wrong_type", f"{path} is not an array")
        if most and len(value) > most:
            raise InvalidRecordError(
                "too_many_items", f"{path} has {len(value)}, allowed are {most}"
            )
        for one in value:
            item(one)

    return check


def _object(shape: Object, path: str, strict: bool) -> Check:
    required, optional = (
        [(name, _compile(of, f"{path}.{name}", strict=strict)) for name, of in fields.items()]
        for fields in (shape.required, shape.optional)
    )

    def check(value: Any) -> None:
        if type(value) is not dict:
            raise InvalidRecordError("wrong_type", f"{path or 'the record'} is not an object")
        for name, of in required:
            if name not in value:
                raise InvalidRecordError("missing_field", f"{path}.{name} is missing")
            of(value[name])
        for name, of in optional:
            if name in value:
                of(value[name])

    return check


def _union(shape: Union, path: str, strict: bool) -> Check:
    types = {name: _compile(of, path, strict=strict) for name, of in shape.types.items()}
    types |= {f"{name}#main": of for name, of in types.items() if "#" not in name}

    def check(value: Any) -> None:
        kind = value.get("$type") if type(value) is dict else None
        if type(kind) is not str:
            raise InvalidRecordError("missing_field", f"{path} has no $type")
        of = types.get(kind)
        if of is not None:
            of(value)

    return check


def is_lenient_datetime(text: str) -> bool:
    """Return whether a text is a datetime as the read path accepts it: the zone may be missing."""
    if is_datetime(text):
        return True
    return "T" in text and not {"t", "z", " "} & set(text) and normalize(text) is not None


def is_lenient_at_uri(text: str) -> bool:
    """Return whether a text is an AT URI whose record key, if any, may have any form."""
    if compiled.is_usual_uri(text):
        return True
    parts = text.split("/")
    return len(parts) <= 5 and is_at_uri("/".join(parts[:4])) and (len(parts) < 5 or bool(parts[4]))


def is_uri(text: str) -> bool:
    """Return whether a text is a URI as lexicons demand it: a scheme, and no spaces."""
    return len(text) <= 8_192 and _URI.fullmatch(text) is not None


def is_language(text: str) -> bool:
    """Return whether a text is a language tag. https://www.rfc-editor.org/rfc/rfc5646"""
    return len(text) <= 128 and _LANGUAGE.fullmatch(text) is not None


def is_cid(text: str) -> bool:
    """Return whether a text looks like a CID."""
    return compiled.is_usual_cid(text) or _CID.fullmatch(text) is not None


_STRICT: Mapping[str, Callable[[str], bool]] = {
    "did": is_did, "at-uri": is_at_uri, "datetime": is_datetime, "uri": is_uri,
    "language": is_language, "cid": is_cid, "handle": is_handle, "nsid": is_nsid,
}  # fmt: skip
_LENIENT = {**_STRICT, "at-uri": is_lenient_at_uri, "datetime": is_lenient_datetime}
_REASONS = {
    "did": "invalid_did", "at-uri": "invalid_uri", "datetime": "invalid_datetime",
    "uri": "invalid_uri", "language": "invalid_language", "cid": "invalid_cid",
    "handle": "invalid_handle", "nsid": "invalid_nsid",
}  # fmt: skip
