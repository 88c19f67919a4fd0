"""Many signatures at once, against the check of each alone."""

import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsky_pipeline.atproto import compiled, crypto
from rsky_pipeline.atproto.crypto import Curve, PrivateKey, SignatureCheck, check_all
from tests.unit.atproto.test_keys import ORDERS

CURVES: list[Curve] = ["k256", "p256"]
curves = st.sampled_from(CURVES)
MESSAGE = b"message"


@st.composite
def checks(draw: st.DrawFn) -> SignatureCheck:
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
    return SignatureCheck(key.public, message, good)


@given(st.lists(checks(), max_size=8))
@settings(max_examples=100)
def test_each_is_judged_as_if_alone(given_checks: list[SignatureCheck]) -> None:
    expected = [key.verify(message, signature) for key, message, signature in given_checks]
    assert check_all(given_checks) == expected


def test_the_library_is_reached_where_the_readers_are_compiled() -> None:
    """Else a newer coincurve hides it elsewhere: signatures would be checked one by one."""
    key = PrivateKey.from_seed("k256", b"a")
    together = crypto._check_together([SignatureCheck(key.public, MESSAGE, key.sign(MESSAGE))])
    assert crypto._REACHED
    assert together == (None if compiled.verify_all(0, 0, 0, []) is None else [True])


def test_keys_of_another_size_are_left_to_the_library() -> None:
    for key, digest in [(bytes(63), bytes(32)), (bytes(64), bytes(31)), (b"", b"")]:
        assert compiled.verify_all(0, 0, 0, [(key, digest, bytes(64))]) is None


@pytest.fixture
def threads_that_never_yield() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1_000)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("threads_that_never_yield")
def test_others_go_on_meanwhile() -> None:
    key = PrivateKey.from_seed("k256", b"a")
    many = [SignatureCheck(key.public, MESSAGE, key.sign(MESSAGE))] * 5_000
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.extend(check_all(many)))
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
        time.sleep(0.001)
    assert found == [True] * 5_000
    assert turns > 5
