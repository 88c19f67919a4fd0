"""DAG-CBOR (DRISL), held to the rules of the AT Protocol data model.

https://atproto.com/specs/data-model. Decoding is bounded in depth, number of items and memory, and
raises nothing but InvalidDataError.

Two libraries decode. libipld is five times as fast as cbor2, but does not distinguish links from
byte strings, and gives no reason when it refuses: then cbor2 decodes again and names the reason.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import cbor2
import libipld

from rsky_pipeline.atproto.cid import LENGTH, VALID_PREFIXES, Cid
from rsky_pipeline.atproto.errors import InvalidDataError

# One record with 4,394 levels is known on the network; it is refused like any deeper than this.
MAX_DEPTH = 128
# The data model's advice for one container, here for everything that is decoded at once.
MAX_ITEMS = 131_072
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**63 - 1
_SCALARS = frozenset({bool, type(None), bytes, Cid})
_LINK_TAG = 42
# The heads of links: the tag in its shortest form, and in the longer ones that cbor2 reads as well.
_LINK_8, _LINK_16 = b"\xd8\x2a", b"\xd9\0\x2a"
_LINK_32, _LINK_64 = b"\xda\0\0\0\x2a", b"\xdb\0\0\0\0\0\0\0\x2a"
# libipld makes room for the elements that a list claims to have, which may be as many as there are
# bytes, at each of the thousand levels that it descends.
_MAX_QUICK = 16_384  # bytes
_COUNT_FROM = 65_536  # bytes; smaller data cannot cost more than a few megabytes

Value = Any  # dict[str, Value] | list[Value] | str | int | bytes | Cid | bool | None


def _read_link(content: object, _immutable: bool) -> Cid:
    if (
        type(content) is bytes
        and len(content) == LENGTH + 1
        and content[0] == 0
        and content[1:5] in VALID_PREFIXES
    ):
        return Cid(content[1:])
    raise InvalidDataError("invalid_cid", "tag 42 without a binary CID")


def _refuse_tag(_content: object, _immutable: bool) -> object:
    raise InvalidDataError("unknown_tag", "only links are tagged")


class _TagReaders(dict[int, Callable[[object, bool], object]]):
    """Replaces every reader that cbor2 brings along.

    Left alone, they would turn tags into dates, patterns, big numbers, and shared references that
    contain themselves.
    """

    def __missing__(self, tag: int) -> Callable[[object, bool], object]:
        return _refuse_tag


_OPTIONS: dict[str, Any] = {
    "semantic_decoders": _TagReaders({_LINK_TAG: _read_link}),
    "max_depth": MAX_DEPTH,
    "allow_indefinite": False,
    "allow_duplicate_keys": False,
    "strict_hashable_types": True,  # numbers as keys can be chosen to collide
}


def decode(data: bytes) -> Value:
    """Decode exactly one item. Raises InvalidDataError.

    Shortest forms and key order are not checked: the bytes are known by their hash. Where they
    must be canonical, use `decode_strict`.
    """
    (value,) = _read(data, 1)
    check_value(value)
    return value


def decode_pair(data: bytes) -> tuple[Value, Value]:
    """Decode a frame: a header and a body, and nothing after them. Raises InvalidDataError."""
    header, body = _read(data, 2)
    check_value(header)
    check_value(body)
    return header, body


def decode_pair_loosely(data: bytes) -> tuple[Value, Value]:
    """Decode a frame without `check_value`, for a caller that looks at all that it takes.

    Links may come as byte strings.
    """
    items = _read_quickly(data)
    header, body = items if items is not None and len(items) == 2 else _read_surely(data, 2)
    return header, body


def decode_strict(data: bytes) -> Value:
    """Decode one item that must be canonical DAG-CBOR. Raises InvalidDataError."""
    value = decode(data)
    if _write(value) != data:
        raise InvalidDataError("not_canonical", "the same value has another, canonical encoding")
    return value


def encode(value: Value) -> bytes:
    """Return the canonical encoding of a value of the data model.

    Raises InvalidDataError for values outside of it.
    """
    check_value(value)
    return _write(value)


def _read(data: bytes, count: int) -> list[Value]:
    has_links = _LINK_8 in data or _LINK_16 in data or _LINK_32 in data or _LINK_64 in data
    items = None if has_links else _read_quickly(data)
    return items if items is not None and len(items) == count else _read_surely(data, count)


def _read_quickly(data: bytes) -> list[Value] | None:
    """Read all items, links as byte strings; None leaves the data to `_read_surely`."""
    if len(data) > _MAX_QUICK:
        return None
    try:
        return libipld.decode_dag_cbor_multi(data)
    except (ValueError, RecursionError):
        return None


def _read_surely(data: bytes, count: int) -> list[Value]:
    if len(data) > _COUNT_FROM:
        _refuse_many_items(data)
    stream = BytesIO(data)
    decoder = cbor2.CBORDecoder(stream, **_OPTIONS)
    try:
        items = [decoder.decode() for _ in range(count)]
    except cbor2.CBORError as error:
        if isinstance(error.__cause__, InvalidDataError):
            raise error.__cause__ from None
        raise InvalidDataError("invalid_cbor", str(error)[:200]) from error
    if stream.tell() != len(data):
        raise InvalidDataError("trailing_bytes", f"{len(data) - stream.tell()} bytes too many")
    return items


def _refuse_many_items(data: bytes) -> None:
    """Count the items of big data before decoding: an empty list takes 1 byte there, 64 here.

    CBOR is a flat sequence of heads, so that counting needs no nesting.
    """
    position, count, size = 0, 0, len(data)
    while position < size:
        count += 1
        if count > MAX_ITEMS:
            raise InvalidDataError("too_many_items", f"more than {MAX_ITEMS}")
        head = data[position]
        position += 1
        argument = head & 0x1F
        if argument > 27:
            return  # reserved or of indefinite length: the decoder refuses it
        if argument > 23:
            width = 1 << (argument - 24)
            argument = int.from_bytes(data[position : position + width], "big")
            position += width
        if head >> 5 in {2, 3}:  # bytes or text follow
            position += argument


def _write_link(encoder: cbor2.CBOREncoder, link: Any) -> None:
    encoder.encode_semantic(_LINK_TAG, b"\x00" + bytes(link))


def _write(value: Value) -> bytes:
    try:
        return cbor2.dumps(value, canonical=True, encoders={Cid: _write_link})
    except (cbor2.CBORError, UnicodeEncodeError) as error:
        raise InvalidDataError("not_encodable", str(error)[:200]) from error


def check_value(value: Value) -> None:
    """Raise InvalidDataError unless a value fits the data model: no floats, text keys, bounded
    depth.

    It goes level by level, so that depth costs no recursion and a cycle ends at the limit.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[Value] = []
        for item in level:
            kind = type(item)
            if kind is str or kind in _SCALARS:
                continue
            if kind is dict:
                for key in item:
                    if type(key) is not str:
                        raise InvalidDataError(
                            "invalid_key", f"a map key of type {type(key).__name__}"
                        )
                below.extend(item.values())
            elif kind is list:
                below.extend(item)
            elif kind is int:
                if not _MIN_INTEGER <= item <= _MAX_INTEGER:
                    raise InvalidDataError("integer_range", "an integer of more than 64 bits")
            elif kind is float:
                raise InvalidDataError("float", "the data model has no floats")
            else:
                raise InvalidDataError("invalid_type", kind.__name__)
        if not below:
            return
        if len(below) > MAX_ITEMS:
            raise InvalidDataError("too_many_items", f"more than {MAX_ITEMS}")
        level = below
    raise InvalidDataError("too_deep", f"more than {MAX_DEPTH} levels")
