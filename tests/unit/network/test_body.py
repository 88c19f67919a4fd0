"""Bodies of other servers: what browsers and the official services read."""

import gzip
import zlib

import pytest

from rsky_pipeline.network.body import BodyDecoder, BodyError, read_json, read_text

DATA = b'{"id": "did:plc:a"}' * 9


def gzipped(data: bytes) -> bytes:
    """Compress without the time, which would be in the name of a test and differ by process."""
    return gzip.compress(data, mtime=0)


def bare(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def decoded(encoding: str, body: bytes, step: int = 7) -> bytes:
    decoder = BodyDecoder(encoding)
    parts = [body[start : start + step] for start in range(0, len(body), step)]
    return b"".join(piece for part in parts for piece in decoder.feed(part))


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        *((name, DATA) for name in ("", "identity", "Identity", "utf-8", "UTF-8", "binary", "none",
                                     "8bit", " , ", "identity, identity", "chunked")),
        ("gzip", gzipped(DATA)),
        (" GZIP ", gzipped(DATA)),
        ("x-gzip", gzipped(DATA)),
        ("gzip, utf-8", gzipped(DATA)),
        ("deflate", zlib.compress(DATA)),
        ("deflate", bare(DATA)),
        ("deflate, gzip", gzipped(zlib.compress(DATA))),
        ("gzip", gzipped(DATA[:50]) + gzipped(DATA[50:])),  # two members
        ("gzip", gzipped(DATA) + b"\0" * 50),  # padding
        ("deflate", zlib.compress(DATA) + b"more"),
    ],
)  # fmt: skip
def test_what_browsers_read_is_read(encoding: str, body: bytes, step: int) -> None:
    assert decoded(encoding, body, step) == DATA


def test_a_body_that_was_cut_off_is_what_came_of_it() -> None:
    whole = gzipped(bytes(range(256)) * 4)
    assert bytes(range(100)) in decoded("gzip", whole[:-30])


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, br", "gzip,gzip,gzip"])
def test_what_nothing_here_decompresses_is_an_error(encoding: str) -> None:
    with pytest.raises(BodyError):
        BodyDecoder(encoding)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_is_not_in_its_encoding_is_an_error(encoding: str) -> None:
    with pytest.raises(BodyError):
        decoded(encoding, b"<html>not compressed at all</html>" * 9)


def test_a_bomb_comes_in_pieces() -> None:
    bomb = gzipped(gzipped(bytes(200_000_000)))
    pieces = BodyDecoder("gzip, gzip").feed(bomb)
    assert max(len(next(pieces)) for _ in range(20)) <= 256 * 1024


def test_every_byte_comes_out_whatever_the_size() -> None:
    for size in (262_143, 262_144, 262_145, 524_288, 700_001):
        data = bytes(size)
        assert decoded("gzip", gzipped(data), 10_000_000) == data
        assert decoded("deflate", bare(data), 100) == data


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b' \r\n{"a": 1}\n', {"a": 1}),
        (b'{"a": "\xff"}', {"a": "\ufffd"}),
    ],
)
def test_json_is_read_as_browsers_do(body: bytes, value: object) -> None:
    assert read_json(body) == value


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xef\xbb\xbf", b"{", b'{"a": NaN}'])
def test_what_is_no_json_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(body)


def test_a_text_begins_after_its_mark() -> None:
    assert read_text(b"\xef\xbb\xbfdid:plc:a\xff") == "did:plc:a\ufffd"
