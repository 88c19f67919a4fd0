"""Labels: recorded ones, ones we sign, and malformed ones."""

import json
from typing import Any

import pytest

from rsky_pipeline.atproto import cbor
from rsky_pipeline.atproto.crypto import PrivateKey, PublicKey
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import LabelsMessage, decode_frame
from rsky_pipeline.atproto.labels import parse_label
from tests.data import test_data
from tests.unit.atproto.dagjson_values import from_json

KEY = PrivateKey.from_seed("k256", b"labeler")
LABEL = {
    "ver": 1,
    "src": "did:plc:n3timvoib5nau7gvwd6cshap",
    "uri": "at://did:plc:44ybard66vv44zksje25o7dz/app.bsky.feed.post/3jzfcijpj2z2a",
    "val": "spam",
    "cts": "2024-10-23T17:51:19.128Z",
}


def signed(**more: Any) -> dict[str, Any]:
    label = LABEL | more
    return label | {"sig": KEY.sign(cbor.encode(label))}


def test_published_signatures() -> None:
    vectors = json.loads(test_data("fixtures/labels/label-signatures.json").read_text())["vectors"]
    assert [vector["valid"] for vector in vectors] == [True, True, False]
    for vector in vectors:
        if "frame" in vector:
            raw = test_data(f"fixtures/labels/{vector['frame']}").read_bytes()
            message = decode_frame(raw)
            assert isinstance(message, LabelsMessage)
            value: Any = message.labels[vector["labelIndex"]]
        else:
            value = from_json(vector["label"])
        key = PublicKey.parse(vector["publicKey"])
        assert parse_label(value).verify(key) == vector["valid"], vector["name"]


@pytest.mark.parametrize(
    "more", [{}, {"neg": False}, {"neg": True}, {"cid": "bafy", "exp": "2030-01-01T00:00:00Z"}]
)
def test_what_came_is_what_was_signed(more: dict[str, Any]) -> None:
    label = parse_label(signed(**more))
    assert label.verify(KEY.public)
    assert (label.neg, label.cid, label.exp) == (
        more.get("neg", False),
        more.get("cid"),
        more.get("exp"),
    )


def test_type_and_unknown_fields_are_not_signed() -> None:
    value = signed() | {"$type": "com.atproto.label.defs#label", "note": [1.5]}
    assert parse_label(value).verify(KEY.public)


@pytest.mark.parametrize("field", ["src", "uri", "val", "cts"])
def test_every_field_is_signed_and_required(field: str) -> None:
    value = signed()
    other = "did:plc:other" if field in {"src", "uri"} else "other"
    assert not parse_label(value | {field: other}).verify(KEY.public)
    del value[field]
    with pytest.raises(InvalidDataError, match="invalid_label"):
        parse_label(value)


def test_an_unsigned_label_does_not_verify() -> None:
    label = parse_label(LABEL)
    assert label.sig is None
    assert not label.verify(KEY.public)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        LABEL | {"ver": "1"},
        LABEL | {"ver": True},
        LABEL | {"src": "labeler"},
        LABEL | {"uri": "https://example.com"},
        LABEL | {"uri": "at://" + "a" * 9_000},
        LABEL | {"val": ""},
        LABEL | {"val": "é" * 65},
        LABEL | {"val": 1},
        LABEL | {"cts": None},
        LABEL | {"cts": "2" * 129},
        LABEL | {"cid": "b" * 129},
        LABEL | {"exp": "2" * 129},
        LABEL | {"uri": "did:"},
        LABEL | {"neg": 1},
        LABEL | {"cid": b"x"},
        LABEL | {"exp": 5},
        LABEL | {"sig": "text"},
    ],
)
def test_malformed_labels_are_refused(value: object) -> None:
    with pytest.raises(InvalidDataError, match="invalid_label"):
        parse_label(value)
