"""Changed inputs: of their bytes, or of one value in them, so that what holds them stays whole."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cbor2
import orjson
from hypothesis import strategies as st

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.cid import Cid
from tests.fuzz.targets import Target

# Texts at which parsers of names, URLs, times and JSON have failed.
TOKENS = [
    ".", "..", ":", "/", "//", "%", "%3A", "%3A99999", "%00", ":99999", ":0", ":abc", ":-1", "@",
    "#", "?", "[", "]", "[::1]", "[::", "::ffff:127.0.0.1", "127.1", "0x7f.1", "localhost", "xn--",
    "a" * 64, "a." * 130, "-", "_", "~", " ", "\0", "\n", "\r\n", "\t", "\\", '"', "'", "{", "}",
    ",", "\ufeff", "\u202e", "\xad", "ü", "ß", "\u2024", "\uff0e", "\u0661", "\u0130", "😀",
    "\ud800",
    "null", "true", "-0", "1e400", "9" * 20, "9" * 5_000, "did:web:", "did:plc:", "at://", "ftp://",
    "http://", "data:", "T", "Z", "-00:00", "+24:00", "24:00:00", "0000", "GMT", "-1",
]  # fmt: skip
BYTES = [token.encode("utf-8", "surrogatepass") for token in TOKENS] + [
    b"\xff", b"\x80", b"\xf6", b"\xf7", b"\xf9\x7e\x00", b"\xfb\x7f\xf8\0\0\0\0\0\0", b"\x9f",
    b"\xbf", b"\xa0", b"\x80" * 300, b"\x81" * 300, b"\xa1\x60" * 300,
    b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", b"\xbb\0\0\0\0\xff\xff\xff\xff",
    b"\x7b\xff\xff\xff\xff\xff\xff\xff\xff", b"\xc2\x41\x01",
    b"\xd8\x1d\x00", b"\xd8\x2a\x58\x25\0", b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff",
]  # fmt: skip
_SIGNS = [b".", b":", b"/", b"%", b"@", b"-", b"0"]
_TEXTS = [token for token in TOKENS if token != "\ud800"]
_JSON: list[Any] = [
    None, True, False, 0, -1, 2**53, 2**63, -(2**63), 1.5, 1e308, "", [], {}, [[]], {"": None},
]  # fmt: skip
_CBOR = [*_JSON, b"", b"\0" * 36, 2**64, -(2**64), float("nan"), Cid.of(b"")]
_LENGTHS = st.sampled_from([0, 0, 1, 1, 2, 5, 20, 1_000])


@st.composite
def mutated(draw: st.DrawFn, target: Target) -> bytes:
    """Return inputs of a target: its seeds, and what few changes make of them."""
    seeds = target.seeds()
    data = seeds[draw(st.integers(0, len(seeds) - 1))]
    codec = _CODECS.get(target.form)
    if codec is None or draw(st.booleans()):
        return _changed_bytes(draw, data)
    value: Any = codec.load(data)
    for _ in range(draw(st.sampled_from([1, 1, 2, 4]))):
        value = _change(draw, value, codec.odd)
    return codec.dump(value)


def _changed_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    for _ in range(draw(st.sampled_from([1, 1, 2, 3, 0]))):
        start = draw(st.integers(0, len(data)) | st.just(len(data)))
        new = draw(st.sampled_from(BYTES) | st.sampled_from(_SIGNS) | st.binary(max_size=4))
        data = data[:start] + new + data[start + draw(_LENGTHS) :]
    return data


def _change(draw: st.DrawFn, value: Any, odd: Sequence[Any]) -> Any:
    """Return a value with one place in it changed."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 9)):
        keys = sorted(value) if isinstance(value, dict) else range(len(value))
        key = draw(st.sampled_from(keys))
        if isinstance(value, dict):
            changed = dict(value)
            if draw(st.integers(0, 19)) == 0:
                changed[draw(st.sampled_from(_TEXTS))] = changed.pop(key)
            else:
                changed[key] = _change(draw, value[key], odd)
            return changed
        items = value.copy()
        if draw(st.integers(0, 9)) == 0:
            return items + items[key : key + 1] * draw(st.sampled_from([1, 300]))
        items[key] = _change(draw, value[key], odd)
        return items
    if isinstance(value, str) and draw(st.integers(0, 3)):
        start = draw(st.integers(0, len(value)))
        token = draw(st.sampled_from(_TEXTS))
        return value[:start] + token + value[start + draw(_LENGTHS) :]
    return draw(st.sampled_from(odd) | st.sampled_from(_TEXTS))


def _dump_cbor(value: Any) -> bytes:
    return cbor2.dumps(value, canonical=True, encoders={Cid: cbor._write_link})


def _dump_frame(items: Any) -> bytes:
    return b"".join(map(_dump_cbor, items if type(items) is list else [items]))


class _Codec(NamedTuple):
    load: Callable[[bytes], Any]
    dump: Callable[[Any], bytes]
    odd: Sequence[Any]


_CODECS = {
    "json": _Codec(orjson.loads, orjson.dumps, _JSON),
    "cbor": _Codec(cbor.decode, _dump_cbor, _CBOR),
    "frame": _Codec(lambda data: list(cbor.decode_pair(data)), _dump_frame, _CBOR),
}
