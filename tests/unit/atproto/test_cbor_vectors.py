"""DAG-CBOR and its JSON form against published vectors."""

import json

import pytest

from rsky_pipeline.atproto import cbor, dagjson
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.errors import InvalidDataError
from tests.data import test_data
from tests.unit.atproto.dagjson_values import from_json


def _strict(data: bytes) -> bool:
    try:
        cbor.decode_strict(data)
    except InvalidDataError:
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
            # AT Protocol differs: no floats at all, SHA-256 only, integers of 64 bits with a sign.
            ours = path.name != "floats.json" and "01551e" not in case["data"]
            ours &= case["data"][2:] != "f" * 16
            good = case["type"] == "roundtrip" and ours
            assert _strict(bytes.fromhex(case["data"])) == good, (path.name, case["name"])
            checked += 1
    assert checked > 50


def test_rfc8949_vectors() -> None:
    """Wherever a vector is valid CBOR of the data model in canonical form, it is accepted."""
    cases = json.loads(test_data("fixtures/atmos/rfc8949-vectors.json").read_text())
    accepted = 0
    for case in cases:
        data = bytes.fromhex(case["hex"])
        if not _strict(data):
            continue
        accepted += 1
        assert "valid" in case["flags"], case
        assert cbor.encode(cbor.decode(data)) == data
    assert len(cases) == 778
    assert accepted == 35  # the others are floats, tags, u64, indefinite or not keyed by text


def test_duplicate_keys_are_refused() -> None:
    path = test_data("fixtures/codec-fixtures/duplicate-keys.json")
    (case,) = json.loads(path.read_text())
    with pytest.raises(InvalidDataError, match="Duplicate map key"):
        cbor.decode(bytes.fromhex(case["hex"]))


def test_nested_lists_are_refused() -> None:
    data = test_data("fixtures/libipld/semi_torture_nested_lists.dagcbor").read_bytes()
    assert not _strict(data)


@pytest.mark.parametrize(
    "name",
    [
        "fixtures/interop/data-model/data-model-fixtures.json",
        "fixtures/atproto-ts/lex-cbor-data-model-fixtures.json",
    ],
)
def test_json_and_cbor_of_published_values(name: str) -> None:
    cases = json.loads(test_data(name).read_text())
    assert cases
    for case in cases:
        value = from_json(case["json"])
        encoded = cbor.encode(value)
        assert encoded == from_json({"$bytes": case["cbor_base64"]})
        assert str(Cid.of(encoded)) == case["cid"]
        assert cbor.decode_strict(encoded) == value
        assert json.loads(dagjson.to_json(value)) == case["json"]


@pytest.mark.parametrize("name", ["feedpost_record.cbor", "post_richtext_link.cbor"])
def test_recorded_posts_are_canonical(name: str) -> None:
    data = test_data(f"fixtures/indigo/records/{name}").read_bytes()
    value = cbor.decode_strict(data)
    assert cbor.encode(from_json(json.loads(dagjson.to_json(value)))) == data
