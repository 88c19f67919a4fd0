"""Checking records against schemas, compiled once into functions.

`strict` is the check of the official indexer. `lenient` is that of the AppView's read path:
datetimes without a zone, record keys of any form in references, blobs of any kind and size and in
their legacy form. In both an explicit null is no value, and unknown properties are kept.
"""

import re
from base64 import b32decode, b32encode
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import regex

from rsky_pipeline.atproto import compiled
from rsky_pipeline.atproto.datetimes import is_datetime, is_readable_datetime
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
# The spaces of JavaScript, by which the official check goes.
_SPACE = r"\t-\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_URI = re.compile(rf"[A-Za-z0-9_]+:(?://)?[^/{_SPACE}][^{_SPACE}]*")
_LANGUAGE = re.compile(
    r"en-GB-oed|i-(?:ami|bnn|default|enochian|hak|klingon|lux|mingo|navajo|pwn|tao|tay|tsu)|"
    r"sgn-(?:BE-FR|BE-NL|CH-DE)|art-lojban|cel-gaulish|no-bok|no-nyn|"
    r"zh-(?:guoyu|hakka|min|min-nan|xiang)|"
    r"(?P<primary>[A-Za-z]{2,3}(?=-|$)|[A-Za-z]{4,8})(?:(?<![A-Za-z]{4})(?:-[A-Za-z]{3}){1,3})?"
    r"(?:-[A-Za-z]{4})?(?:-(?:[A-Za-z]{2}|[0-9]{3}))?"
    r"(?P<variants>(?:-(?:[A-Za-z0-9]{5,8}|[0-9][A-Za-z0-9]{3}))*)"
    r"(?P<extensions>(?:-[0-9A-WY-Za-wy-z](?:-[A-Za-z0-9]{2,8})+)*)"
    r"(?:-[xX](?:-[A-Za-z0-9]{1,8})+)?|"
    r"[xX](?:-[A-Za-z0-9]{1,8})+"
)
_PRIMARY = re.compile(r"[a-z]{2,3}")
_SINGLETON = re.compile(r"-([0-9A-Za-z])(?=-)")
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_LARGEST = 2**53 - 1  # integers are numbers of JavaScript there
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2,3}={0,2})?")
_BLOB = {"$type", "ref", "mimeType", "size"}
_OLD_BLOB = {"cid", "mimeType"}


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
        if not -_LARGEST <= value <= _LARGEST:
            raise InvalidRecordError("out_of_range", f"{path} is {value}")
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
        held = value.get("$bytes") if type(value) is dict and len(value) == 1 else None
        if type(held) is not str or not _BASE64.fullmatch(held):
            raise InvalidRecordError("wrong_type", f"{path} is not bytes")
        size = len(held.rstrip("=")) * 3 // 4
        if shape.max_bytes and size > shape.max_bytes:
            raise InvalidRecordError("too_long", f"{path} has {size} bytes")

    return check


def _blob(shape: Blob, path: str, strict: bool) -> Check:
    kinds = frozenset(shape.accept)
    prefixes = tuple(kind[:-1] for kind in shape.accept if kind.endswith("/*"))

    def check(value: Any) -> None:
        if type(value) is not dict:
            raise InvalidRecordError("invalid_blob", f"{path} is no blob")
        kind, size = value.get("mimeType"), value.get("size")
        if "$type" not in value and not strict:
            cid = value.get("cid")
            if value.keys() != _OLD_BLOB or type(cid) is not str or not is_cid(cid) or not kind:
                raise InvalidRecordError("invalid_blob", f"{path} is no blob of the old form")
            if type(kind) is not str:
                raise InvalidRecordError("invalid_blob", f"{path} has no kind")
            return
        if value.get("$type") != "blob" or value.keys() != _BLOB:
            raise InvalidRecordError("invalid_blob", f"{path} is no blob")
        reference = value["ref"]
        link = reference.get("$link") if type(reference) is dict and len(reference) == 1 else None
        if type(link) is not str or not is_cid(link):
            raise InvalidRecordError("invalid_blob", f"{path} names no blob")
        if type(kind) is not str or "/" not in kind:
            raise InvalidRecordError("invalid_blob", f"{path} has no kind")
        if type(size) is not int or not (0 if strict else -1) <= size <= _LARGEST:  # -1: unknown
            raise InvalidRecordError("invalid_blob", f"{path} has no size")
        if not strict:
            return
        if not link.startswith("bafkrei"):
            raise InvalidRecordError("invalid_blob", f"{path} names no raw block")
        if size > shape.max_size:
            raise InvalidRecordError("invalid_blob", f"{path} has {size} bytes")
        if kind not in kinds and not kind.startswith(prefixes):
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
    kind = shape.name

    def check(value: Any) -> None:
        if type(value) is not dict:
            raise InvalidRecordError("wrong_type", f"{path or 'the record'} is not an object")
        if kind and "$type" in value and value["$type"] != kind:
            raise InvalidRecordError("wrong_type", f"{path} is not of the type {kind}")
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

    def check(value: Any) -> None:
        kind = value.get("$type") if type(value) is dict else None
        if type(kind) is not str:
            raise InvalidRecordError("missing_field", f"{path} has no $type")
        of = types.get(kind)
        if of is not None:
            of(value)

    return check


def is_lenient_at_uri(text: str) -> bool:
    """Return whether the read path takes a text for an AT URI."""
    return is_at_uri(text, strict=False)


def is_uri(text: str) -> bool:
    """Return whether a text is a URI as lexicons demand it: a scheme, and no spaces."""
    return _URI.fullmatch(text) is not None


def is_language(text: str) -> bool:
    """Return whether a text is a language tag whose parts are not repeated, and in usual case.

    https://www.rfc-editor.org/rfc/rfc5646
    """
    found = _LANGUAGE.fullmatch(text)
    if found is None:
        return False
    primary, variants, extensions = found["primary"], found["variants"], found["extensions"]
    return primary is None or (
        _PRIMARY.fullmatch(primary) is not None
        and _are_different(variants.split("-")[1:])
        and _are_different(_SINGLETON.findall(extensions))
    )


def is_lenient_language(text: str) -> bool:
    """Return whether the read path takes a text for a language tag."""
    return _LANGUAGE.fullmatch(text) is not None


def is_cid(text: str) -> bool:
    """Return whether a text is a CID: of version 0, or of version 1 in base32, with any codec."""
    if compiled.is_usual_cid(text):
        return True
    try:
        return _is_cid(text)
    except (ValueError, IndexError):
        return False


def _are_different(texts: Sequence[str]) -> bool:
    return len({text.lower() for text in texts}) == len(texts)


def _is_cid(text: str) -> bool:
    """Raises ValueError and IndexError for a malformed text."""
    if len(text) > 2_048 or not text.isascii():
        return False
    if text.startswith("Qm"):
        number = 0
        for letter in text:
            number = number * 58 + _BASE58.index(letter)
        return len(text) == 46 and number >> 256 == 0x1220
    digits = text[1:]
    data = b32decode(digits.upper() + "=" * (-len(digits) % 8)) if text[:1] == "b" else b""
    if b32encode(data).decode().rstrip("=").lower() != digits or data[:1] != b"\x01":
        return False
    place = 1
    for _ in ("codec", "kind of hash"):
        _, place = _varint(data, place)
    size, place = _varint(data, place)
    return len(data) - place == size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return the number at a place, and the place behind it."""
    number = shift = 0
    while True:
        byte = data[place]
        number, shift, place = number | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return number, place


_STRICT: Mapping[str, Callable[[str], bool]] = {
    "did": is_did, "at-uri": is_at_uri, "datetime": is_datetime, "uri": is_uri,
    "language": is_language, "cid": is_cid, "handle": is_handle, "nsid": is_nsid,
}  # fmt: skip
_LENIENT = {
    **_STRICT, "at-uri": is_lenient_at_uri, "datetime": is_readable_datetime,
    "language": is_lenient_language,
}  # fmt: skip
_REASONS = {
    "did": "invalid_did", "at-uri": "invalid_uri", "datetime": "invalid_datetime",
    "uri": "invalid_uri", "language": "invalid_language", "cid": "invalid_cid",
    "handle": "invalid_handle", "nsid": "invalid_nsid",
}  # fmt: skip
