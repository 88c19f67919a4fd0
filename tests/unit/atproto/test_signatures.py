"""Signatures of both curves by either library."""

from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto import compiled, crypto, native
from rsky_pipeline.atproto.crypto import Curve, PrivateKey, PublicKey
from rsky_pipeline.atproto.errors import InvalidDataError
from tests.unit.atproto.test_keys import ORDERS

CURVES: list[Curve] = ["k256", "p256"]
curves = st.sampled_from(CURVES)
Check = tuple[PublicKey, bytes, bytes]


@st.composite
def checks(draw: st.DrawFn) -> Check:
    """A good signature, or one that is wrong in some way."""
    curve: Curve = draw(curves)
    key = PrivateKey.from_seed(curve, draw(st.binary(max_size=2)))
    message = draw(st.binary(max_size=40))
    good = key.sign(message)
    r, s = int.from_bytes(good[:32], "big"), int.from_bytes(good[32:], "big")
    numbers = st.sampled_from([0, 1, r, s, ORDERS[curve] - s, ORDERS[curve], 2**256 - 1])
    kind = draw(st.sampled_from(["good", "numbers", "length", "message", "key"]))
    if kind == "numbers":
        good = draw(numbers).to_bytes(32, "big") + draw(numbers).to_bytes(32, "big")
    elif kind == "length":
        good = draw(st.sampled_from([good[:-1], good + b"\0", b""]))
    elif kind == "message":
        message += b"x"
    elif kind == "key":
        key = PrivateKey.from_seed(draw(curves), b"another")
    return key.public, message, good


@given(checks())
@settings(max_examples=200)
def test_each_is_judged_as_by_cryptography(check: Check) -> None:
    key, message, signature = check
    assert key.verify(message, signature) == judged_by_cryptography(key, message, signature)


def judged_by_cryptography(key: PublicKey, message: bytes, signature: bytes) -> bool:
    return crypto._verify(key.curve, crypto._load(key.curve, key.point), message, signature)


@given(curves, st.binary(max_size=4), st.binary(max_size=40))
@settings(max_examples=60)
def test_cryptography_signs_the_same(curve: Curve, seed: bytes, message: bytes) -> None:
    key = PrivateKey.from_seed(curve, seed)
    signature = key.sign(message)
    assert signature == crypto._sign(curve, key.secret, message)
    assert key.public.point == crypto._point(curve, key.secret)


def test_only_points_are_keys() -> None:
    """The hybrid form of a point is refused on both curves, with the library and without."""
    for curve in CURVES:
        point = PrivateKey.from_seed(curve, b"a").public.point
        numbers = crypto._load(curve, point).public_numbers()
        whole = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        message = b"the same key"
        signature = PrivateKey.from_seed(curve, b"a").sign(message)
        assert PublicKey(curve, b"\x04" + whole).verify(message, signature)
        wrong = [
            bytes([6 + (numbers.y & 1)]) + whole, b"\x04" + whole[:-1] + bytes([whole[-1] ^ 1]),
            b"\x05" + point[1:], point[:-1], point + b"\0", b"\0", b"", b"\x02" + b"\xff" * 32,
        ]  # fmt: skip
        for bad in wrong:
            assert compiled.load_key(bad) is None
            with pytest.raises(InvalidDataError):
                PublicKey(curve, bad)


def test_no_secret_is_a_key_but_a_number_below_the_order() -> None:
    for secret in (b"", bytes(31), bytes(32), bytes(33), ORDERS["k256"].to_bytes(32, "big")):
        assert compiled.sign(secret, bytes(32)) is None
        assert compiled.point_of(secret) is None
    assert compiled.sign(b"a" * 32, bytes(31)) is None


def test_keys_of_another_size_are_left_over() -> None:
    for key, digest in [(bytes(63), bytes(32)), (bytes(64), bytes(31)), (b"", b"")]:
        assert compiled.verify(key, digest, bytes(64)) is None


def test_the_library_is_as_it_was_published() -> None:
    folder = Path(native.__file__).parent / "libsecp256k1"
    listed = (folder / "SHA256SUMS").read_text().splitlines()
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS"]
    assert sorted(listed) == sorted(
        f"{sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}" for path in files
    )
