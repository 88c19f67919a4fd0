"""CIDs in the one binary form that AT Protocol uses: version 1, SHA-256, dag-cbor or raw.

https://atproto.com/specs/data-model#link-and-cid-formats
"""

from base64 import b32decode
from hashlib import sha256
from typing import Self

from rsky_pipeline.atproto.errors import InvalidData

DAG_CBOR = 0x71
RAW = 0x55
LENGTH = 36
_PREFIXES = {DAG_CBOR: b"\x01\x71\x12\x20", RAW: b"\x01\x55\x12\x20"}
VALID_PREFIXES = frozenset(_PREFIXES.values())
_DIGITS = 58  # base32 digits of 36 bytes


def _spreading_steps() -> list[tuple[int, int, int]]:
    """Return the masks and shifts that put 64 digits of 5 bits into a byte each.

    Every step parts each run of digits in the middle and moves the upper half away, until a run is
    one digit: a sixth of the cost of `b32encode`, which reading a relay would feel.
    """
    steps = []
    run = 64
    while run > 1:
        half = (1 << 5 * (run // 2)) - 1
        starts = range(0, 8 * 64, 8 * run)
        low = sum(half << start for start in starts)
        steps.append((low, low << 5 * (run // 2), 3 * (run // 2)))
        run //= 2
    return steps


_STEPS = _spreading_steps()
_ALPHABET = b"abcdefghijklmnopqrstuvwxyz234567".ljust(256)


class Cid(bytes):
    """The 36 bytes of a CID; `str()` gives the base32 text that starts with `b`."""

    __slots__ = ()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Check and wrap a binary CID. Raises InvalidData for any other form."""
        if len(data) != LENGTH or data[:4] not in VALID_PREFIXES:
            raise InvalidData("invalid_cid", f"{len(data)} bytes starting {data[:4].hex()}")
        return cls(data)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the base32 text form, which has one spelling only. Raises InvalidData."""
        # 36 bytes are 58 base32 characters; b32decode wants the padding and upper case.
        if len(text) != 59 or text[0] != "b":
            raise InvalidData("invalid_cid", text[:80])
        try:
            cid = cls.from_bytes(b32decode(text[1:].upper() + "======"))
        except InvalidData:
            raise
        except ValueError as error:
            raise InvalidData("invalid_cid", text) from error
        if str(cid) != text:
            raise InvalidData("invalid_cid", text)
        return cid

    @classmethod
    def of(cls, block: bytes, codec: int = DAG_CBOR) -> Self:
        """Return the CID of a block's bytes."""
        return cls(_PREFIXES[codec] + sha256(block).digest())

    def __str__(self) -> str:
        number = int.from_bytes(self, "big") << (5 * _DIGITS - 8 * LENGTH)
        for low, high, shift in _STEPS:
            number = (number & high) << shift | number & low
        return "b" + number.to_bytes(_DIGITS, "big").translate(_ALPHABET).decode("ascii")

    def __repr__(self) -> str:
        return f"Cid({self})"

    @property
    def codec(self) -> int:
        """`DAG_CBOR` or `RAW`."""
        return self[1]

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the block."""
        return self[4:]
