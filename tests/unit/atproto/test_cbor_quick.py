"""The faster decoder says what the other one says, or nothing."""

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.cbor import check_value
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import CommitMessage, decode_frame
from tests.data import test_data
from tests.data_frames import corpus_frames
from tests.unit.atproto.test_cbor import values


def without_links(value: Any) -> Any:
    """Return a value with byte strings in the place of links, and what else is not told apart."""
    if isinstance(value, dict):
        return {key: without_links(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_links(item) for item in value]
    return bytes(value) if isinstance(value, Cid) else value


def agree(data: bytes) -> bool:
    """Assert that what is read quickly is read alike the other way, and tell whether it is."""
    items = cbor._read_quickly(data)
    if items is None:
        return False
    assert repr(items) == repr(without_links(cbor._read_surely(data, len(items))))
    return True


@given(values)
@settings(max_examples=200)
def test_what_is_encoded_is_read_quickly(value: Any) -> None:
    data = cbor.encode(value)
    assert agree(data)
    assert cbor.decode(data) == value


@given(values, st.data())
@settings(max_examples=500)
def test_damaged_values_are_read_alike(value: Any, draw: st.DataObject) -> None:
    data = bytearray(cbor.encode(value))
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    items = cbor._read_quickly(bytes(data))
    try:
        surely = cbor._read_surely(bytes(data), len(items or [0]))
    except InvalidDataError as error:
        # Links are looked at by whoever reads a frame, and everything else by `check`.
        for item in (items or []) if error.reason != "invalid_cid" else []:
            with pytest.raises(InvalidDataError):
                check_value(item)
    else:
        assert items is None or repr(items) == repr(without_links(surely))


def head(draw: st.DataObject, kind: int, number: int) -> bytes:
    """Return the head of an item in any of its forms, however long."""
    widths = [width for width in (1, 2, 4, 8) if number < 256**width]
    width = draw.draw(st.sampled_from([0, *widths] if number < 24 else widths))
    if not width:
        return bytes([kind << 5 | number])
    return bytes([kind << 5 | 24 + (1, 2, 4, 8).index(width)]) + number.to_bytes(width, "big")


def spelled(draw: st.DataObject, value: Any) -> bytes:
    """Return an encoding of a value that need not be canonical."""
    match value:
        case bool() | None:
            return cbor.encode(value)
        case Cid():
            return head(draw, 6, 42) + head(draw, 2, 37) + b"\0" + value
        case int():
            return head(draw, 1, -1 - value) if value < 0 else head(draw, 0, value)
        case bytes():
            return head(draw, 2, len(value)) + value
        case str():
            return head(draw, 3, len(value.encode())) + value.encode()
        case list():
            return head(draw, 4, len(value)) + b"".join(spelled(draw, item) for item in value)
    pairs = [spelled(draw, key) + spelled(draw, value[key]) for key in value]
    return head(draw, 5, len(pairs)) + b"".join(pairs)


@given(values, st.data())
@settings(max_examples=300)
def test_a_value_is_the_same_however_it_is_written(value: Any, draw: st.DataObject) -> None:
    found = cbor.decode(spelled(draw, value))
    assert repr(found) == repr(value)  # which tells links from byte strings


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_link_is_one_however_its_tag_is_written(width: int) -> None:
    link = Cid.of(b"block")
    tag = bytes([{1: 0xD8, 2: 0xD9, 4: 0xDA, 8: 0xDB}[width]]) + (42).to_bytes(width, "big")
    value = cbor.decode(b"\xa1aa" + tag + b"\x58\x25\x00" + link)
    assert type(value["a"]) is Cid
    assert value == {"a": link}


@pytest.mark.parametrize("size", [1_000, 16_384, 16_385, 1_000_000])
def test_lists_that_claim_much_cost_little(size: int) -> None:
    data = (b"\x99\x00\xff" * (size // 3))[:size]
    longest = (b"\x99\x3c\x00" * (size // 3))[:size]
    for hostile in (data, longest, b"\x81" * size, b"\xa1aa" * (size // 3)):
        tracemalloc.start()
        assert cbor._read_quickly(hostile) is None
        assert tracemalloc.get_traced_memory()[1] < 150_000_000
        tracemalloc.stop()


def test_recorded_blocks_are_read_alike() -> None:
    frames = corpus_frames(test_data("fixtures/jetstream/corpus"))
    commits = [item for item in map(decode_frame, frames) if isinstance(item, CommitMessage)]
    blocks = [block for item in commits for block in read_car(item.blocks).blocks.values()]
    assert len(blocks) > 1_000
    assert all(agree(data) for data in blocks)
    assert sum(agree(data) for data in frames) > len(frames) * 0.9
