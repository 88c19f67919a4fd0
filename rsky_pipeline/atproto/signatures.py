"""Many signatures at once, for a thread of their own.

Those of secp256k1 are checked in one compiled call that releases the interpreter, so that others
go on meanwhile. The call of coincurve enters and leaves it several times for each signature, and
waits for the other threads each time.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from rsky_pipeline.atproto import compiled
from rsky_pipeline.atproto.crypto import PublicKey

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


class SignatureCheck(NamedTuple):
    """A signature over a message, and the key that it should be of."""

    key: PublicKey
    message: bytes
    signature: bytes


def check_all(checks: Sequence[SignatureCheck]) -> list[bool]:
    """Tell of each signature whether it is good, exactly as `PublicKey.verify` does."""
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
