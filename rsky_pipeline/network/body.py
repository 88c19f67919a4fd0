"""Bodies of HTTP answers, read as browsers and the official services read them.

Servers compress although nobody asked them to, name encodings that are none (`utf-8`, `binary`, an
empty text), and begin their JSON with a byte order mark. All of that is read; what is decompressed
has the bounds of what is sent plainly.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import orjson

_PIECE = 256 * 1024  # bytes that are decompressed at once
_MAX_LAYERS = 2  # of compression; each multiplies what a byte can become
_GZIP = frozenset({"gzip", "x-gzip"})
_UNREADABLE = frozenset({"br", "zstd", "compress", "x-compress"})
_GZIP_START = b"\x1f\x8b"
_MARK = b"\xef\xbb\xbf"


class BodyError(ValueError):
    """A body that is not in the encoding that its headers name, or in one that nothing reads."""


class BodyDecoder:
    """Undoes the encodings of one body; `encoding` is its Content-Encoding header.

    Unknown encodings are none, as in browsers (https://fetch.spec.whatwg.org/#handle-content-codings).
    """

    def __init__(self, encoding: str) -> None:
        """Raises BodyError for an encoding that cannot be read."""
        self._layers: list[_Inflater] = []
        names = [name.strip().lower() for name in encoding.split(",")]
        for name in reversed(names):  # the last one was applied last
            if name in _UNREADABLE:
                raise BodyError(f"it is compressed with {name}, which was not asked for")
            if name in _GZIP or name == "deflate":
                self._layers.append(_Inflater(name))
        if len(self._layers) > _MAX_LAYERS:
            raise BodyError("it is compressed again and again")

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what follows from more bytes, in pieces of bounded size. Raises BodyError."""
        pieces: Iterator[bytes] = iter((data,))
        for layer in self._layers:
            pieces = layer.feed_all(pieces)
        return pieces


class _Inflater:
    """One layer of compression. A body that ends in the middle is that much of it, as in browsers:
    whoever reads it notices what is missing."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 16 if name in _GZIP else zlib.MAX_WBITS)
        self._begun = False
        self._tail: bytes | None = None  # behind the end of a member

    def feed_all(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        for part in parts:
            yield from self._feed(part)

    def _feed(self, data: bytes) -> Iterator[bytes]:
        if not self._begun and data:
            self._begun = True
            # Many servers mean the bare format by "deflate", without the frame of zlib (RFC 1950).
            if self._name == "deflate" and data[0] & 0x0F != 8:
                self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)
        while data:
            if self._tail is not None:
                # One more member begins, or it is padding.
                data = self._tail + data
                if self._name not in _GZIP or not data.startswith(_GZIP_START):
                    self._tail = data[:2]
                    return
                self._zlib, self._tail = zlib.decompressobj(zlib.MAX_WBITS | 16), None
            try:
                piece = self._zlib.decompress(data, _PIECE)
                while piece:
                    yield piece
                    more = len(piece) == _PIECE  # and it may hold on to what follows
                    piece = (
                        self._zlib.decompress(self._zlib.unconsumed_tail, _PIECE) if more else b""
                    )
            except zlib.error as error:
                raise BodyError(f"it is not {self._name}: {error}") from error
            data = self._zlib.unused_data
            if self._zlib.eof:
                self._tail = b""


def read_json(body: bytes) -> Any:
    """Decode a JSON document as `Response.json()` of browsers does: a byte order mark is skipped,
    and bytes that are no UTF-8 become replacement characters. Raises ValueError."""
    body = body.removeprefix(_MARK)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return orjson.loads(body.decode("utf-8", "replace"))


def read_text(body: bytes) -> str:
    """Decode a text as `Response.text()` of browsers does."""
    return body.removeprefix(_MARK).decode("utf-8", "replace")
