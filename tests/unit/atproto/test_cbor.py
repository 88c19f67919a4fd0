"""DAG-CBOR: published vectors, and whatever hypothesis comes up with."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto import cbor, dagjson
from rsky_pipeline.atproto.cid import RAW, Cid
from rsky_pipeline.atproto.errors import InvalidData
from tests.data import test_data

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
    assert dagjson.from_json(json.loads(dagjson.to_json(value))) == value


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_arbitrary_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        value = cbor.decode_strict(data)
    except InvalidData:
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
        (bytes.fromhex("a10102"), "invalid_key"),
        (bytes.fromhex("8001"), "trailing_bytes"),
        (b"\x81" * 200 + b"\x00", "invalid_cbor"),
        (b"\x81" * 100_000 + b"\x00", "invalid_cbor"),
        (bytes.fromhex("9b0000010000000000"), "invalid_cbor"),
        (bytes.fromhex("5b0000010000000000"), "invalid_cbor"),
        (bytes.fromhex("d82a4100"), "invalid_cid"),
        (bytes.fromhex("9fff"), "invalid_cbor"),
        (bytes.fromhex("a2616101616102"), "invalid_cbor"),
        (b"", "invalid_cbor"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidData) as error:
        cbor.decode(data)
    assert error.value.reason == reason


def _strict(data: bytes) -> bool:
    try:
        cbor.decode_strict(data)
    except InvalidData:
        return False
    return True


def test_dasl_vectors() -> None:
    checked = 0
    for path in sorted(test_data("fixtures/dasl-testing").glob("*.json")):
        for case in json.loads(path.read_text()):
            if not {"basic", "dag-cbor", "dasl-cid"} & set(case["tags"]):
                continue
            if case["type"] == "invalid_out":
                continue
            # AT Protocol differs: no floats at all, and SHA-256 only.
            ours = path.name != "floats.json" and "01551e" not in case["data"]
            good = case["type"] == "roundtrip" and ours
            assert _strict(bytes.fromhex(case["data"])) == good, (path.name, case["name"])
            checked += 1
    assert checked > 50


def test_rfc8949_vectors_never_crash_and_invalid_ones_are_refused() -> None:
    cases = json.loads(test_data("fixtures/atmos/rfc8949-vectors.json").read_text())
    for case in cases:
        accepted = _strict(bytes.fromhex(case["hex"]))
        if "valid" not in case["flags"]:
            assert not accepted, case
    assert len(cases) == 778


def test_nested_lists_are_refused() -> None:
    data = test_data("fixtures/libipld/semi_torture_nested_lists.dagcbor").read_bytes()
    assert not _strict(data)


def test_data_model_fixtures() -> None:
    path = test_data("fixtures/interop/data-model/data-model-fixtures.json")
    for case in json.loads(path.read_text()):
        value = dagjson.from_json(case["json"])
        encoded = cbor.encode(value)
        assert encoded == dagjson.from_json({"$bytes": case["cbor_base64"]})
        assert str(Cid.of(encoded)) == case["cid"]
