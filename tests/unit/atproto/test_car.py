"""CARs: whole, in pieces, damaged, and as other implementations write them."""

import json
import tracemalloc
from base64 import b64decode
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.car import Car, CarReader, read_car, write_car
from rsky_pipeline.atproto.cid import RAW, Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.rules import MAX_BLOCK
from tests.data import test_data

ROOT = Cid.of(b"root")
contents = st.lists(st.binary(max_size=300), max_size=8)


def read_in_pieces(data: bytes, size: int = 7) -> Car:
    reader = CarReader()
    blocks: dict[Cid, bytes] = {}
    for start in range(0, len(data), size):
        blocks.update(reader.feed(data[start : start + size]))
    return Car(reader.finish(), blocks)


READERS: list[Callable[[bytes], Car]] = [read_car, read_in_pieces]


def header(value: object) -> bytes:
    encoded = cbor.encode(value)
    size = len(encoded)
    return (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + encoded


def section(name: bytes, block: bytes) -> bytes:
    return write_car([ROOT], [(Cid(name), block)])[59:]


@given(contents, st.integers(1, 40))
@settings(max_examples=50)
def test_a_car_may_arrive_in_pieces(blocks: list[bytes], size: int) -> None:
    named = [(Cid.of(block), block) for block in blocks]
    data = write_car([ROOT], named)
    reader = CarReader()
    seen = []
    for start in range(0, len(data), size):
        seen += reader.feed(data[start : start + size])
    assert reader.finish() == (ROOT,)
    assert seen == named
    assert read_car(data) == Car((ROOT,), dict(named))


@given(contents, st.data())
@settings(max_examples=200)
def test_both_readers_agree_on_damaged_cars(blocks: list[bytes], data: st.DataObject) -> None:
    car = bytearray(write_car([ROOT], [(Cid.of(block), block) for block in blocks]))
    position = data.draw(st.integers(0, len(car) - 1))
    car[position] = data.draw(st.integers(0, 255))
    car = car[: data.draw(st.integers(0, len(car)))]
    try:
        whole = read_car(bytes(car))
    except InvalidDataError:
        whole = None
    try:
        pieces = read_in_pieces(bytes(car))
    except InvalidDataError:
        pieces = None
    assert whole == pieces


@pytest.mark.parametrize("read", READERS)
def test_variants_of_headers(read: Callable[[bytes], Car]) -> None:
    assert read(header({"roots": [ROOT], "version": 1})).roots == (ROOT,)
    assert read(header({"roots": [ROOT, ROOT], "version": 1})).roots == (ROOT, ROOT)
    assert read(header({"roots": [ROOT], "version": 1, "more": None})).roots == (ROOT,)
    backwards = b"\xa2gversion\x01" + cbor.encode({"roots": [ROOT]})[1:]
    assert read(bytes([len(backwards)]) + backwards).roots == (ROOT,)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "value",
    [
        {"roots": [ROOT], "version": 2},
        {"roots": [ROOT], "version": 3},
        {"roots": [ROOT]},
        {"roots": [], "version": 1},
        {"roots": [ROOT] * 17, "version": 1},
        {"roots": [bytes(ROOT)], "version": 1},
        {"roots": None, "version": 1},
        [ROOT],
    ],
)
def test_bad_headers_are_refused(read: Callable[[bytes], Car], value: object) -> None:
    with pytest.raises(InvalidDataError, match="invalid_car_header"):
        read(header(value))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "invalid_car_header|truncated_car"),
        (b"\x00", "invalid_cbor"),
        (b"\xff" * 10, "invalid_varint"),
        (b"\xff\xff\x7f", "invalid_car_header|block_too_big"),
        (write_car([ROOT], []) + b"\x80\x00" + b"x" * 40, "invalid_varint"),
        (write_car([ROOT], []) + b"\x80", "truncated_car"),
        (write_car([ROOT], []) + b"\x30" + ROOT, "truncated_car"),
        (write_car([ROOT], []) + b"\x00", "invalid_cid"),
        (write_car([ROOT], []) + b"\x0a" + Cid.of(b""), "invalid_cid"),
        (write_car([ROOT], []) + section(b"\x01\x71\x12\x20" + b"x" * 32, b"a"), "hash_mismatch"),
        (write_car([ROOT], []) + section(b"\x01\x70\x12\x20" + b"x" * 32, b"a"), "invalid_cid"),
        (write_car([ROOT], []) + section(b"\x12\x20" + b"x" * 34, b"a"), "invalid_cid"),
        (
            write_car([ROOT], [(Cid.of(b"a" * (MAX_BLOCK + 1)), b"a" * (MAX_BLOCK + 1))]),
            "block_too_big",
        ),
    ],
)
def test_bad_cars_are_refused(read: Callable[[bytes], Car], data: bytes, reason: str) -> None:
    with pytest.raises(InvalidDataError, match=reason):
        read(data)


@pytest.mark.parametrize("read", READERS)
def test_the_biggest_block_and_duplicates_are_accepted(read: Callable[[bytes], Car]) -> None:
    big = b"a" * MAX_BLOCK
    blocks = [(Cid.of(big, RAW), big), (Cid.of(b"b"), b"b"), (Cid.of(b"b"), b"b")]
    data = write_car([ROOT], blocks)
    car = read_car(data) if read is read_car else read_in_pieces(data, 65_536)
    assert car.blocks == dict(blocks)


def test_limits_of_the_caller() -> None:
    data = write_car([ROOT], [(Cid.of(block), block) for block in (b"a", b"bb", b"ccc")])
    assert len(read_car(data, max_blocks=3).blocks) == 3
    with pytest.raises(InvalidDataError, match="too_many_blocks"):
        read_car(data, max_blocks=2)


def test_declared_lengths_allocate_nothing() -> None:
    reader = CarReader()
    reader.feed(write_car([ROOT], []))
    tracemalloc.start()
    assert reader.feed(b"\xa4\x80\x40" + ROOT) == []  # a block of 1 MiB that never arrives
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000
    with pytest.raises(InvalidDataError, match="truncated_car"):
        reader.finish()


def test_published_cars_are_byte_equal() -> None:
    for case in json.loads(test_data("fixtures/atproto-ts/car-file-fixtures.json").read_text()):
        data = b64decode(case["car"] + "==")
        blocks = [
            (Cid.parse(block["cid"]), b64decode(block["bytes"] + "==")) for block in case["blocks"]
        ]
        assert write_car([Cid.parse(case["root"])], blocks) == data
        assert list(read_car(data).blocks.items()) == blocks
