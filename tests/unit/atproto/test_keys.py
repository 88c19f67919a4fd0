"""Keys and signatures of both curves."""

import json
from base64 import b64decode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multiformats import multibase

from rsky_pipeline.atproto.crypto import (
    Curve,
    PrivateKey,
    PublicKey,
    decode_base58,
)
from rsky_pipeline.atproto.errors import InvalidDataError
from tests.data import test_data

ORDERS: dict[Curve, int] = {
    "k256": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
    "p256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
}
LEGACY_K256 = (
    "zQYEBzXeuTM9UR3rfvNag6L3RNAs5pQZyYPsomTsgQhsxLdEgCrPTLgFna8yqCnxPpNT7DBk6Ym3dgPKNu86vt9GR"
)
K256, P256 = (
    "zQ3shiHs333X5JPbkexEf7tfbAkjUUS1j8cnVt6Pk7PvPneyX",
    "zDnaejxfkzjuu4GxMfqyjkGD8zP3MDvu7neA8ter7FLNVHo8x",
)
K256_SIGNATURE = (
    "2d052ea6f782536bb119c68244a58076f62d6b06de4fba22009551fabb2d92b2"
    "1e4b0c90b4efb314372043609b0b14239b8a934266d8b642c3902c21e4762f2f"
)
P256_SIGNATURE = (
    "e30466a51e9f06f45bef38f273a643a29dda03d6d09a59465058f69725f35bb4"
    "1ed4b9bf90d3ee6ac38cf41be004341382d28f292953db9d3e89e64c13111068"
)
LEGACY_TYPE = "EcdsaSecp256k1VerificationKey2019"


@given(st.binary(max_size=80), st.text(max_size=20))
def test_base58_is_that_of_multiformats(data: bytes, text: str) -> None:
    encoded = multibase.encode(data, "base58btc")
    assert decode_base58(encoded[1:]) == data
    try:
        expected = multibase.decode("z" + text)
    except (ValueError, KeyError):
        with pytest.raises(KeyError):
            decode_base58(text)
    else:
        assert decode_base58(text) == expected


curves = pytest.mark.parametrize("curve", ["k256", "p256"])


@curves
@given(message=st.binary(max_size=100), seed=st.binary(max_size=8))
@settings(max_examples=40, deadline=None)
def test_signatures(curve: Curve, message: bytes, seed: bytes) -> None:
    key = PrivateKey.from_seed(curve, seed)
    signature = key.sign(message)
    order, s = ORDERS[curve], int.from_bytes(signature[32:], "big")
    assert s <= order // 2
    assert key.public.verify(message, signature)
    assert not key.public.verify(message + b"x", signature)
    assert not key.public.verify(message, signature[:-1])
    high = signature[:32] + (order - s).to_bytes(32, "big")
    assert not key.public.verify(message, high)
    other = PrivateKey.from_seed(curve, seed + b"x").public
    assert not other.verify(message, signature)


@curves
def test_signatures_out_of_range_are_bad(curve: Curve) -> None:
    key = PrivateKey.from_seed(curve, b"seed").public
    good = (1).to_bytes(32, "big")
    for number in (0, ORDERS[curve], 2**256 - 1):
        bad = number.to_bytes(32, "big")
        assert not key.verify(b"", bad + good)
        assert not key.verify(b"", good + bad)
    assert not key.verify(b"", b"")
    assert not key.verify(b"", good * 3)


@curves
def test_forms_of_a_key(curve: Curve) -> None:
    key = PrivateKey.from_seed(curve, b"seed")
    assert key.multibase.startswith("zQ3sh" if curve == "k256" else "zDn")
    assert (
        PublicKey.parse(f"did:key:{key.multibase}") == PublicKey.parse(key.multibase) == key.public
    )
    assert key == PrivateKey.from_seed(curve, b"seed") != PrivateKey.from_seed(curve, b"other")


def test_private_keys_are_not_shown() -> None:
    key = PrivateKey.from_seed("k256", b"seed")
    assert key.secret.hex() not in repr(key)
    assert repr(key.secret) not in repr(key)


def test_legacy_keys_are_points_without_a_prefix() -> None:
    key = PublicKey.parse(LEGACY_K256, LEGACY_TYPE)
    assert (key.curve, len(key.point)) == ("k256", 65)
    for kind in (None, "Multikey", "EcdsaSecp256r1VerificationKey2019"):
        with pytest.raises(InvalidDataError):
            PublicKey.parse(LEGACY_K256, kind)


@pytest.mark.parametrize("kind", [None, LEGACY_TYPE, "Multikey"])
@given(
    text=st.text(max_size=60)
    | st.binary(max_size=70).map(lambda raw: multibase.encode(raw, "base58btc"))
)
@settings(max_examples=60, deadline=None)
def test_other_texts_are_no_keys(kind: str | None, text: str) -> None:
    with pytest.raises(InvalidDataError):
        PublicKey.parse(text, kind)


@pytest.mark.timeout(10)
def test_a_long_text_is_no_key() -> None:
    with pytest.raises(InvalidDataError):
        PublicKey.parse("z" + "a" * 1_000_000)


def test_other_bases_are_no_keys() -> None:
    raw = multibase.decode(PrivateKey.from_seed("k256", b"seed").multibase)
    for base in ("base16", "base32", "base64"):
        with pytest.raises(InvalidDataError):
            PublicKey.parse(multibase.encode(raw, base))


@pytest.mark.parametrize(("curve", "key", "signature"), [
    ("k256", K256, K256_SIGNATURE), ("p256", P256, P256_SIGNATURE),
])  # fmt: skip
def test_signatures_stay_the_same(curve: Curve, key: str, signature: str) -> None:
    """Of recorded networks, whoever makes them."""
    secret = PrivateKey.from_seed(curve, b"seed")
    assert secret.multibase == key
    assert secret.sign(b"message").hex() == signature
    assert PublicKey.parse(key).verify(b"message", bytes.fromhex(signature))


def test_published_signatures() -> None:
    path = test_data("fixtures/interop/crypto/signature-fixtures.json")
    cases = json.loads(path.read_text())
    assert [case["validSignature"] for case in cases].count(True) == 2
    for case in cases:
        message = b64decode(case["messageBase64"] + "==")
        signature = b64decode(case["signatureBase64"] + "==")
        for key in (
            PublicKey.parse(case["publicKeyDid"]),
            PublicKey.parse(case["publicKeyMultibase"], case["didDocSuite"]),
        ):
            assert key.verify(message, signature) == case["validSignature"], case["comment"]


@pytest.mark.parametrize("name", ["K256", "P256"])
def test_published_did_keys(name: str) -> None:
    path = test_data(f"fixtures/interop/crypto/w3c_didkey_{name}.json")
    curve: Curve = "k256" if name == "K256" else "p256"
    for case in json.loads(path.read_text()):
        if "privateKeyBytesHex" in case:
            secret = bytes.fromhex(case["privateKeyBytesHex"])
        else:
            secret = bytes(multibase.decode("z" + case["privateKeyBytesBase58"]))
        assert f"did:key:{PrivateKey(curve, secret).multibase}" == case["publicDidKey"]
