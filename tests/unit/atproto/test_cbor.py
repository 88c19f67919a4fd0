"""DAG-CBOR and its JSON form: limits, refusals, and whatever hypothesis comes up with."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto import cbor, dagjson
from rsky_pipeline.atproto.cid import RAW, Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from tests.unit.atproto.dagjson_values import from_json

cids = st.builds(Cid.of, st.binary(max_size=8), st.sampled_from([0x71, RAW]))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.binary(max_size=50)
    | cids
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abcdefgh", max_size=9), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(values)
@settings(max_examples=150)
def test_round_trip(value: Any) -> None:
    encoded = cbor.encode(value)
    assert cbor.decode_strict(encoded) == value
    assert from_json(json.loads(dagjson.to_json(value))) == value


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_arbitrary_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        value = cbor.decode_strict(data)
    except InvalidDataError:
        return
    assert cbor.encode(value) == data


def test_links_and_bytes_are_different_values() -> None:
    link = Cid.of(b"block")
    assert cbor.decode(cbor.encode([link, bytes(link)])) == [link, bytes(link)]
    assert dagjson.to_json({"a": link, "b": b"\x00\x01"}) == (
        b'{"a":{"$link":"%s"},"b":{"$bytes":"AAE"}}' % str(link).encode()
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bytes.fromhex("fb3ff0000000000000"), "float"),
        (bytes.fromhex("fa3f800000"), "float"),
        (bytes.fromhex("f93c00"), "float"),
        (bytes.fromhex("a1410102"), "invalid_key"),
        (bytes.fromhex("a10102"), "invalid_cbor"),
        (bytes.fromhex("a1820102f6"), "invalid_cbor"),
        (bytes.fromhex("f7"), "invalid_type"),
        (bytes.fromhex("e5"), "invalid_type"),
        (bytes.fromhex("1b8000000000000000"), "integer_range"),
        (bytes.fromhex("3b8000000000000000"), "integer_range"),
        (bytes.fromhex("8001"), "trailing_bytes"),
        (b"\x81" * 129 + b"\x00", "too_deep"),
        (b"\xa1\x61a" * 129 + b"\x00", "too_deep"),
        (b"\xd8\x2a" * 100_000 + b"\x00", "invalid_cbor"),
        (b"\x81" * 100_000 + b"\x00", "invalid_cbor"),
        (bytes.fromhex("9b0000010000000000"), "invalid_cbor"),
        (bytes.fromhex("5b0000010000000000"), "invalid_cbor"),
        (bytes.fromhex("bb0000010000000000"), "invalid_cbor"),
        (bytes.fromhex("7bffffffffffffffff"), "invalid_cbor"),
        (bytes.fromhex("d82a4100"), "invalid_cid"),
        (bytes.fromhex("d82a00"), "invalid_cid"),
        (bytes.fromhex("9fff"), "invalid_cbor"),
        (bytes.fromhex("a2616101616102"), "invalid_cbor"),
        (b"", "invalid_cbor"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidDataError) as error:
        cbor.decode(data)
    assert error.value.reason == reason


TAGGED = {
    "a date": "c07818323031332d30332d32315432303a30343a30302e3030305a",
    "a big number": "c24101",
    "a pattern that takes ages": "d8236a" + b"(a+)+$aaaa".hex(),
    "a list that contains itself": "d81c81d81d00",
    "a string by number": "d9010083446162636444d81900",
    "a set": "d901028101",
    "a marker of CBOR": "d9d9f700",
    "an unknown one": "d903e800",
}


@pytest.mark.parametrize("data", TAGGED.values(), ids=TAGGED.keys())
@pytest.mark.timeout(20)
def test_no_tag_but_links_reaches_the_library(data: str) -> None:
    with pytest.raises(InvalidDataError) as error:
        cbor.decode(bytes.fromhex(data))
    assert error.value.reason in {"unknown_tag", "invalid_cbor"}


def test_the_deepest_allowed_value_makes_the_round_trip() -> None:
    for data in (b"\x81" * 128 + b"\x00", b"\xa1\x61a" * 128 + b"\x00"):
        value = cbor.decode_strict(data)
        assert cbor.encode(value) == data
        assert from_json(json.loads(dagjson.to_json(value))) == value


def test_a_small_frame_cannot_become_a_big_heap() -> None:
    count = 4_000_000
    data = b"\x9a" + count.to_bytes(4, "big") + b"\x80" * count
    tracemalloc.start()
    with pytest.raises(InvalidDataError, match="too_many_items"):
        cbor.decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_big_values_within_the_limits_are_decoded() -> None:
    value = {"bytes": b"\x80" * 3_000_000, "list": list(range(-50_000, 50_000)), "text": "é" * 9}
    assert cbor.decode(cbor.encode(value)) == value


@pytest.mark.parametrize(
    "value", [1.5, {1: 2}, {"a": {b"k": 1}}, 2**63, object(), ("a",), "\ud800"]
)
def test_values_outside_the_data_model_are_not_encoded(value: object) -> None:
    with pytest.raises(InvalidDataError):
        cbor.encode(value)


def test_cyclic_values_are_not_encoded() -> None:
    cycle: list[Any] = []
    cycle += [cycle, cycle]
    with pytest.raises(InvalidDataError):
        cbor.encode(cycle)


@given(values, values)
@settings(max_examples=60)
def test_pairs_are_two_items_and_nothing_else(header: Any, body: Any) -> None:
    data = cbor.encode(header) + cbor.encode(body)
    assert cbor.decode_pair(data) == (header, body)
    for damaged in (data + b"\x00", data[:-1]):
        with pytest.raises(InvalidDataError):
            cbor.decode_pair(damaged)


@given(values, st.data())
@settings(max_examples=150)
def test_damaged_values_are_decoded_or_refused(value: Any, data: st.DataObject) -> None:
    encoded = bytearray(cbor.encode(value))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] = data.draw(st.integers(0, 255))
    try:
        other = cbor.decode(bytes(encoded))
    except InvalidDataError:
        return
    assert cbor.decode_strict(cbor.encode(other)) == other
    dagjson.to_json(other)
