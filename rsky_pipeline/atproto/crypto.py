"""Keys and signatures of both curves, low-S only. https://atproto.com/specs/cryptography

Those of secp256k1 are a matter of libsecp256k1, which is a part of the compiled readers; without
them `cryptography` does the same, ten times slower. Those of commits of the firehose are checked by
`compiled.prove`.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from rsky_pipeline.atproto import compiled
from rsky_pipeline.atproto.errors import InvalidDataError

# RFC 6979: the same message gives the same signature, so simulated networks can be repeated.
_REPEATABLE = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)

Curve = Literal["k256", "p256"]
_MAX_TEXT = 200  # characters; decoding base58 takes time that grows with the square
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_VALUES = {character: value for value, character in enumerate(_BASE58)}
_K256_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_ORDERS: dict[Curve, int] = {"k256": _K256_ORDER, "p256": _P256_ORDER}
_CURVES: dict[Curve, ec.EllipticCurve] = {"k256": ec.SECP256K1(), "p256": ec.SECP256R1()}
_PREFIXES: dict[bytes, Curve] = {b"\xe7\x01": "k256", b"\x80\x24": "p256"}
_LEGACY_TYPES: dict[str, Curve] = {
    "EcdsaSecp256k1VerificationKey2019": "k256",
    "EcdsaSecp256r1VerificationKey2019": "p256",
}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A verification key: its curve and its point in SEC1 form.

    Raises InvalidDataError for bytes that are no point of the curve. Keep keys that are used often:
    reading a point costs up to half as much as verifying with it.
    """

    curve: Curve
    point: bytes
    # Of `compiled.load_key`, or of `cryptography`.
    _loaded: bytes | ec.EllipticCurvePublicKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        quick = compiled.load_key(self.point) if self.curve == "k256" else None
        loaded = _load(self.curve, self.point) if quick is None else quick
        object.__setattr__(self, "_loaded", loaded)

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
            raw = decode_base58(encoded[1:])
        except KeyError as error:
            raise InvalidDataError("invalid_key", text[:80]) from error
        curve = _PREFIXES.get(raw[:2]) if len(raw) == 35 else None
        if curve is not None:
            return cls(curve, raw[2:])
        if legacy_type in _LEGACY_TYPES:
            return cls(_LEGACY_TYPES[legacy_type], raw)
        raise InvalidDataError("invalid_key", text[:80])

    @property
    def secp256k1(self) -> bytes | None:
        """The key as libsecp256k1 holds it; None on the other curve, and without the library."""
        return self._loaded if isinstance(self._loaded, bytes) else None

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Return whether a 64-byte signature (r and s) over SHA-256 of the message is good.

        High-S and DER signatures are bad on both curves.
        """
        loaded = self._loaded
        if isinstance(loaded, bytes):
            found = compiled.verify(loaded, sha256(message).digest(), signature)
            if found is not None:
                return found
            loaded = _load(self.curve, self.point)
        return _verify(self.curve, loaded, message, signature)


def decode_base58(text: str) -> bytes:
    """Return the bytes behind a text in base58btc. Raises KeyError for other characters.

    multiformats takes 30 us for a key, ten times as long.
    """
    number = 0
    for character in text:
        number = number * 58 + _BASE58_VALUES[character]
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def _load(curve: Curve, point: bytes) -> ec.EllipticCurvePublicKey:
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[curve], point)
    except ValueError as error:
        raise InvalidDataError("invalid_key", f"not a point of the curve {curve}") from error


def _verify(curve: Curve, key: ec.EllipticCurvePublicKey, message: bytes, signature: bytes) -> bool:
    if len(signature) != 64:
        return False
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    order = _ORDERS[curve]
    if not 0 < r < order or not 0 < s <= order // 2:
        return False
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A signing key, for simulated accounts."""

    curve: Curve
    secret: bytes = field(repr=False)

    @classmethod
    def from_seed(cls, curve: Curve, seed: bytes) -> "PrivateKey":
        """Derive a key from any bytes, always the same from the same."""
        order = _ORDERS[curve]
        number = int.from_bytes(sha256(seed).digest(), "big") % (order - 1) + 1
        return cls(curve, number.to_bytes(32, "big"))

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte low-S signature over SHA-256 of a message."""
        quick = None
        if self.curve == "k256":
            quick = compiled.sign(self.secret, sha256(message).digest())
        return _sign(self.curve, self.secret, message) if quick is None else quick

    @property
    def multibase(self) -> str:
        """The public key as a DID document's `publicKeyMultibase`."""
        from multiformats import multibase  # of simulated accounts alone: it takes 8 MB

        prefix, point = b"\xe7\x01", None
        if self.curve == "k256":
            point = compiled.point_of(self.secret)
        else:
            prefix = b"\x80\x24"
        raw = prefix + (_point(self.curve, self.secret) if point is None else point)
        return str(multibase.encode(raw, "base58btc"))

    @property
    def public(self) -> PublicKey:
        """The key that verifies what this one signs."""
        return PublicKey.parse(self.multibase)


def _sign(curve: Curve, secret: bytes, message: bytes) -> bytes:
    r, s = decode_dss_signature(_private(curve, secret).sign(message, _REPEATABLE))
    return r.to_bytes(32, "big") + min(s, _ORDERS[curve] - s).to_bytes(32, "big")


def _point(curve: Curve, secret: bytes) -> bytes:
    public = _private(curve, secret).public_key()
    return public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


# Making a key object from its number costs as much as signing with it.
@lru_cache(maxsize=2_048)
def _private(curve: Curve, secret: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(secret, "big"), _CURVES[curve])
