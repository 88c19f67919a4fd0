"""CIDs in the one binary form that AT Protocol uses: version 1, SHA-256, dag-cbor or raw.

https://atproto.com/specs/data-model#link-and-cid-formats
"""

from base64 import b32decode
from hashlib import sha256
from typing import Self

from libipld import encode_cid

from rsky_pipeline.atproto.errors import InvalidDataError

DAG_CBOR = 0x71
RAW = 0x55
LENGTH = 36
_PREFIXES = {DAG_CBOR: b"\x01\x71\x12\x20", RAW: b"\x01\x55\x12\x20"}
VALID_PREFIXES = frozenset(_PREFIXES.values())


class Cid(bytes):
    """The 36 bytes of a CID; `str()` gives the base32 text that starts with `b`."""

    __slots__ = ()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Check and wrap a binary CID. Raises InvalidDataError for any other form."""
        if len(data) != LENGTH or data[:4] not in VALID_PREFIXES:
            raise InvalidDataError("invalid_cid", f"{len(data)} bytes starting {data[:4].hex()}")
        return cls(data)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the base32 text form, which has one spelling only. Raises InvalidDataError."""
        # 36 bytes are 58 base32 characters; b32decode wants the padding and upper case.
        if len(text) != 59 or text[0] != "b":
            raise InvalidDataError("invalid_cid", text[:80])
        try:
            cid = cls.from_bytes(b32decode(text[1:].upper() + "======"))
        except InvalidDataError:
            raise
        except ValueError as error:
            raise InvalidDataError("invalid_cid", text) from error
        if str(cid) != text:
            raise InvalidDataError("invalid_cid", text)
        return cid

    @classmethod
    def of(cls, block: bytes, codec: int = DAG_CBOR) -> Self:
        """Return the CID of a block's bytes."""
        return cls(_PREFIXES[codec] + sha256(block).digest())

    def __str__(self) -> str:
        return encode_cid(self)

    def __repr__(self) -> str:
        return f"Cid({self})"

    @property
    def codec(self) -> int:
        """`DAG_CBOR` or `RAW`."""
        return self[1]
