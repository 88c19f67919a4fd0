"""DAG-CBOR (DRISL), decoded by cbor2 and held to the rules of the AT Protocol data model.

https://atproto.com/specs/data-model
"""

from io import BytesIO
from typing import Any

import cbor2

from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidData

# One record with 4,394 levels is known on the network; it is refused like any deeper than this.
MAX_DEPTH = 128
_MIN_INTEGER, _MAX_INTEGER = -(2**64), 2**64 - 1

Value = Any  # dict[str, Value] | list[Value] | str | int | bytes | Cid | bool | None


def _read_link(tag: cbor2.CBORTag, _immutable: bool) -> Cid:
    if tag.tag != 42:
        raise InvalidData("unknown_tag", str(tag.tag))
    payload = tag.value
    if not isinstance(payload, bytes) or payload[:1] != b"\x00":
        raise InvalidData("invalid_cid", "tag 42 without a binary CID")
    return Cid.from_bytes(payload[1:])


def _decoder(stream: BytesIO) -> cbor2.CBORDecoder:
    return cbor2.CBORDecoder(
        stream,
        tag_hook=_read_link,
        max_depth=MAX_DEPTH,
        allow_indefinite=False,
        allow_duplicate_keys=False,
        read_size=65_536,
    )


def _read(decoder: cbor2.CBORDecoder) -> Value:
    try:
        value = decoder.decode()
    except InvalidData:
        raise
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError) as error:
        cause = error.__cause__
        if isinstance(cause, InvalidData):
            raise cause from None
        raise InvalidData("invalid_cbor", str(error)[:200]) from error
    check(value)
    return value


def check(value: Value) -> None:
    """Raise InvalidData unless a decoded value fits the data model (no floats, text keys)."""
    stack = [value]
    while stack:
        item = stack.pop()
        kind = type(item)
        if kind is str or kind is bytes or kind is Cid or kind is bool or item is None:
            continue
        if kind is dict:
            for key in item:
                if type(key) is not str:
                    raise InvalidData("invalid_key", f"a map key of type {type(key).__name__}")
            stack.extend(item.values())
        elif kind is list:
            stack.extend(item)
        elif kind is int:
            if not _MIN_INTEGER <= item <= _MAX_INTEGER:
                raise InvalidData("integer_range", "an integer of more than 64 bits")
        elif kind is float:
            raise InvalidData("float", "the data model has no floats")
        else:
            raise InvalidData("invalid_type", kind.__name__)


def decode(data: bytes) -> Value:
    """Decode exactly one item. Raises InvalidData.

    Shortest forms and key order are not checked: the bytes are known by their hash. Where they
    must be canonical, use `decode_strict`.
    """
    first, rest = _decode_first(data)
    if rest != len(data):
        raise InvalidData("trailing_bytes", f"{len(data) - rest} bytes after the item")
    return first


def decode_pair(data: bytes) -> tuple[Value, Value]:
    """Decode a frame: a header and a body, and nothing after them. Raises InvalidData."""
    stream = BytesIO(data)
    decoder = _decoder(stream)
    header = _read(decoder)
    body = _read(decoder)
    if _has_more(decoder, stream):
        raise InvalidData("trailing_bytes", "bytes after the frame's body")
    return header, body


def decode_strict(data: bytes) -> Value:
    """Decode one item that must be canonical DAG-CBOR. Raises InvalidData."""
    value = decode(data)
    if encode(value) != data:
        raise InvalidData("not_canonical", "the same value has another, canonical encoding")
    return value


def _decode_first(data: bytes) -> tuple[Value, int]:
    stream = BytesIO(data)
    decoder = _decoder(stream)
    value = _read(decoder)
    return value, len(data) - 1 if _has_more(decoder, stream) else len(data)


def _has_more(decoder: cbor2.CBORDecoder, stream: BytesIO) -> bool:
    try:
        return bool(decoder.read(1))
    except (cbor2.CBORDecodeEOF, EOFError):
        return stream.tell() < len(stream.getbuffer())


def _write_link(encoder: cbor2.CBOREncoder, link: Cid) -> None:
    encoder.encode(cbor2.CBORTag(42, b"\x00" + bytes(link)))


def encode(value: Value) -> bytes:
    """Return the canonical encoding of a value of the data model.

    Raises InvalidData for values outside of it.
    """
    try:
        return cbor2.dumps(value, canonical=True, encoders={Cid: _write_link})
    except (cbor2.CBORError, UnicodeEncodeError) as error:
        raise InvalidData("not_encodable", str(error)[:200]) from error
