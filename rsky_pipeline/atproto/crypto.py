"""Keys and signatures of both curves, low-S only. https://atproto.com/specs/cryptography

`check_all` checks many signatures, in a thread of their own: those of secp256k1 in one compiled
call that releases the interpreter, so that others go on meanwhile. The call of coincurve enters and
leaves it several times for each signature, and waits for the other threads each time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Literal, NamedTuple

import coincurve
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from multiformats import multibase

from rsky_pipeline.atproto import compiled
from rsky_pipeline.atproto.errors import InvalidDataError

# RFC 6979: the same message gives the same signature, so simulated networks can be repeated.
_REPEATABLE = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)

Curve = Literal["k256", "p256"]
_MAX_TEXT = 200  # characters; decoding base58 takes time that grows with the square
_K256_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_PREFIXES: dict[bytes, Curve] = {b"\xe7\x01": "k256", b"\x80\x24": "p256"}
_LEGACY_TYPES: dict[str, Curve] = {
    "EcdsaSecp256k1VerificationKey2019": "k256",
    "EcdsaSecp256r1VerificationKey2019": "p256",
}


try:  # libsecp256k1, which coincurve brings and keeps to itself
    from coincurve._libsecp256k1 import ffi, lib
    from coincurve.context import GLOBAL_CONTEXT

    _PARSE, _VERIFY, _CONTEXT = (
        int(ffi.cast("uintptr_t", pointer))
        for pointer in (
            ffi.addressof(lib, "secp256k1_ecdsa_signature_parse_compact"),
            ffi.addressof(lib, "secp256k1_ecdsa_verify"),
            GLOBAL_CONTEXT.ctx,
        )
    )
    _REACHED = ffi.sizeof("secp256k1_ecdsa_signature") == 64
except (ImportError, AttributeError):
    _REACHED = False


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A verification key: its curve and its point in SEC1 form.

    Raises InvalidDataError for bytes that are no point of the curve. Keep keys that are used often:
    reading a point costs up to half as much as verifying with it.
    """

    curve: Curve
    point: bytes
    _loaded: coincurve.PublicKey | ec.EllipticCurvePublicKey = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "_loaded", _load(self.curve, self.point))

    @classmethod
    def parse(cls, text: str, legacy_type: str | None = None) -> "PublicKey":
        """Read a did:key or a multibase key.

        The two legacy verification method types hold a bare point without a codec prefix.
        Raises InvalidDataError.
        """
        encoded = text.removeprefix("did:key:")
        if not encoded.startswith("z") or len(encoded) > _MAX_TEXT:
            raise InvalidDataError("invalid_key", text[:80])
        try:
            raw = bytes(multibase.decode(encoded))
        except (ValueError, KeyError) as error:
            raise InvalidDataError("invalid_key", text[:80]) from error
        curve = _PREFIXES.get(raw[:2]) if len(raw) == 35 else None
        if curve is not None:
            return cls(curve, raw[2:])
        if legacy_type in _LEGACY_TYPES:
            return cls(_LEGACY_TYPES[legacy_type], raw)
        raise InvalidDataError("invalid_key", text[:80])

    @property
    def secp256k1(self) -> coincurve.PublicKey | None:
        """The key as coincurve holds it; None on the other curve."""
        return self._loaded if isinstance(self._loaded, coincurve.PublicKey) else None

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Return whether a 64-byte signature (r and s) over SHA-256 of the message is good.

        High-S and DER signatures are bad on both curves.
        """
        if len(signature) != 64:
            return False
        r = int.from_bytes(signature[:32], "big")
        s = int.from_bytes(signature[32:], "big")
        order = _K256_ORDER if self.curve == "k256" else _P256_ORDER
        if not 0 < r < order or not 0 < s <= order // 2:
            return False
        der = encode_dss_signature(r, s)
        if isinstance(self._loaded, coincurve.PublicKey):
            return bool(self._loaded.verify(der, message))
        try:
            self._loaded.verify(der, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


def _load(curve: Curve, point: bytes) -> coincurve.PublicKey | ec.EllipticCurvePublicKey:
    try:
        if curve == "k256":
            return coincurve.PublicKey(point)
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError as error:
        raise InvalidDataError("invalid_key", f"not a point of the curve {curve}") from error


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A signing key, for simulated accounts."""

    curve: Curve
    secret: bytes = field(repr=False)

    @classmethod
    def from_seed(cls, curve: Curve, seed: bytes) -> "PrivateKey":
        """Derive a key from any bytes, always the same from the same."""
        order = _K256_ORDER if curve == "k256" else _P256_ORDER
        number = int.from_bytes(sha256(seed).digest(), "big") % (order - 1) + 1
        return cls(curve, number.to_bytes(32, "big"))

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte low-S signature over SHA-256 of a message."""
        if self.curve == "k256":
            der, order = _k256(self.secret).sign(message), _K256_ORDER
        else:
            der, order = _p256(self.secret).sign(message, _REPEATABLE), _P256_ORDER
        r, s = decode_dss_signature(der)
        return r.to_bytes(32, "big") + min(s, order - s).to_bytes(32, "big")

    @property
    def multibase(self) -> str:
        """The public key as a DID document's `publicKeyMultibase`."""
        if self.curve == "k256":
            raw = b"\xe7\x01" + _k256(self.secret).public_key.format()
        else:
            numbers = _p256(self.secret).public_key().public_numbers()
            sign = b"\x03" if numbers.y & 1 else b"\x02"
            raw = b"\x80\x24" + sign + numbers.x.to_bytes(32, "big")
        return str(multibase.encode(raw, "base58btc"))

    @property
    def public(self) -> PublicKey:
        """The key that verifies what this one signs."""
        return PublicKey.parse(self.multibase)


# Making a key object from its number costs as much as signing with it.
@lru_cache(maxsize=2_048)
def _k256(secret: bytes) -> coincurve.PrivateKey:
    return coincurve.PrivateKey(secret)


@lru_cache(maxsize=2_048)
def _p256(secret: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256R1())


class SignatureCheck(NamedTuple):
    """A signature over a message, and the key that it should be of."""

    key: PublicKey
    message: bytes
    signature: bytes


def check_all(checks: Sequence[SignatureCheck]) -> list[bool]:
    """Return for each signature whether it is good, exactly as `PublicKey.verify` does."""
    found = _check_together(checks) if _REACHED else None
    if found is None:
        return [key.verify(message, signature) for key, message, signature in checks]
    return found


def _check_together(checks: Sequence[SignatureCheck]) -> list[bool] | None:
    together = []
    apart: dict[int, bool] = {}
    for place, (key, message, signature) in enumerate(checks):
        loaded = key.secp256k1
        if loaded is None:
            apart[place] = key.verify(message, signature)
        else:
            held = bytes(ffi.buffer(loaded.public_key))
            together.append((held, sha256(message).digest(), signature))
    found = compiled.verify_all(_PARSE, _VERIFY, _CONTEXT, together)
    if found is None:
        return None
    for place, good in apart.items():  # in ascending order, so that each gets its own place
        found.insert(place, good)
    return found
