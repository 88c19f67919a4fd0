# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
"""Keys and signatures of secp256k1, by libsecp256k1, which stands beside this file.

`verify_all` checks many signatures in one call, which holds the interpreter only to copy them.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.string cimport memcpy

from rsky_pipeline.atproto.native.common cimport content, size_of

cdef extern from "secp256k1.h" nogil:
    ctypedef struct secp256k1_context:
        pass
    ctypedef struct secp256k1_pubkey:
        unsigned char data[64]
    ctypedef struct secp256k1_ecdsa_signature:
        pass
    const secp256k1_context *secp256k1_context_static
    unsigned int SECP256K1_CONTEXT_NONE
    unsigned int SECP256K1_EC_COMPRESSED
    void secp256k1_selftest()
    secp256k1_context *secp256k1_context_create(unsigned int)
    int secp256k1_ec_pubkey_parse(
        const secp256k1_context *, secp256k1_pubkey *, const unsigned char *, size_t
    )
    int secp256k1_ec_pubkey_create(
        const secp256k1_context *, secp256k1_pubkey *, const unsigned char *
    )
    int secp256k1_ec_pubkey_serialize(
        const secp256k1_context *, unsigned char *, size_t *, const secp256k1_pubkey *, unsigned int
    )
    int secp256k1_ecdsa_signature_parse_compact(
        const secp256k1_context *, secp256k1_ecdsa_signature *, const unsigned char *
    )
    int secp256k1_ecdsa_signature_serialize_compact(
        const secp256k1_context *, unsigned char *, const secp256k1_ecdsa_signature *
    )
    int secp256k1_ecdsa_verify(
        const secp256k1_context *, const secp256k1_ecdsa_signature *, const unsigned char *,
        const secp256k1_pubkey *
    )
    int secp256k1_ecdsa_sign(
        const secp256k1_context *, secp256k1_ecdsa_signature *, const unsigned char *,
        const unsigned char *, void *, const void *
    )

cdef enum:
    NUMBER = 32  # bytes of a digest, and of a private key
    SIGNATURE = 64
    COMPRESSED = 33  # bytes of a point
    UNCOMPRESSED = 65

secp256k1_selftest()
# For private keys; public ones need no tables, so that the static context does. Never given back.
cdef secp256k1_context *_SIGNING = secp256k1_context_create(SECP256K1_CONTEXT_NONE)


cdef struct Check:
    secp256k1_pubkey key
    unsigned char digest[NUMBER]
    unsigned char signature[SIGNATURE]
    bint good


def load_key(bytes point not None):
    """Return a point in the form that `verify_all` takes, None if it is not of the curve.

    The hybrid form of a point, which nobody uses, is refused.
    """
    cdef secp256k1_pubkey key
    cdef const unsigned char *start = <const unsigned char *>content(point)
    cdef size_t size = size_of(point)
    if not (
        size == COMPRESSED and 2 <= start[0] <= 3 or size == UNCOMPRESSED and start[0] == 4
    ) or not secp256k1_ec_pubkey_parse(secp256k1_context_static, &key, start, size):
        return None
    return PyBytes_FromStringAndSize(<char *>key.data, sizeof(secp256k1_pubkey))


def verify_all(list checks not None):
    """Return for each check whether its signature is good; None if a key has another size.

    A check is a key of `load_key`, a digest and a compact signature, whose s must be low.
    """
    cdef Py_ssize_t count = len(checks), index
    cdef Check *held = <Check *>PyMem_Malloc(count * sizeof(Check) + 1)
    if held is NULL:
        raise MemoryError
    try:
        for index in range(count):
            if not _copy(checks[index], &held[index]):
                return None
        with nogil:
            for index in range(count):
                _check(&held[index])
        return [held[index].good for index in range(count)]
    finally:
        PyMem_Free(held)


cdef bint _copy(check, Check *held) except -1:
    cdef bytes key, digest, signature
    key, digest, signature = check
    if size_of(key) != sizeof(secp256k1_pubkey) or size_of(digest) != NUMBER:
        return False
    held.good = size_of(signature) == SIGNATURE
    if held.good:
        memcpy(held.key.data, content(key), sizeof(secp256k1_pubkey))
        memcpy(held.digest, content(digest), NUMBER)
        memcpy(held.signature, content(signature), SIGNATURE)
    return True


cdef void _check(Check *check) noexcept nogil:
    cdef secp256k1_ecdsa_signature parsed
    check.good = (
        check.good
        and secp256k1_ecdsa_signature_parse_compact(
            secp256k1_context_static, &parsed, check.signature
        ) == 1
        and secp256k1_ecdsa_verify(
            secp256k1_context_static, &parsed, check.digest, &check.key
        ) == 1
    )


def sign(bytes secret not None, bytes digest not None):
    """Return the compact low-S signature that RFC 6979 gives, None for what is no private key."""
    cdef secp256k1_ecdsa_signature made
    cdef unsigned char compact[SIGNATURE]
    if size_of(secret) != NUMBER or size_of(digest) != NUMBER or not secp256k1_ecdsa_sign(
        _SIGNING, &made, <const unsigned char *>content(digest),
        <const unsigned char *>content(secret), NULL, NULL,
    ):
        return None
    secp256k1_ecdsa_signature_serialize_compact(_SIGNING, compact, &made)
    return PyBytes_FromStringAndSize(<char *>compact, SIGNATURE)


def point_of(bytes secret not None):
    """Return the compressed point of a private key, None for what is none."""
    cdef secp256k1_pubkey key
    cdef unsigned char point[COMPRESSED]
    cdef size_t size = COMPRESSED
    if size_of(secret) != NUMBER or not secp256k1_ec_pubkey_create(
        _SIGNING, &key, <const unsigned char *>content(secret)
    ):
        return None
    secp256k1_ec_pubkey_serialize(_SIGNING, point, &size, &key, SECP256K1_EC_COMPRESSED)
    return PyBytes_FromStringAndSize(<char *>point, COMPRESSED)
