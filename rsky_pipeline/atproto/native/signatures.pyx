# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
"""Many secp256k1 signatures in one call, which holds the interpreter only to copy them."""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.string cimport memcpy

from rsky_pipeline.atproto.native.common cimport content, size_of

cdef enum:
    KEY = 64  # bytes, as the library holds it
    DIGEST = 32
    SIGNATURE = 64

ctypedef int (*Parse)(const void *, unsigned char *, const unsigned char *) noexcept nogil
ctypedef int (*Verify)(
    const void *, const unsigned char *, const unsigned char *, const unsigned char *
) noexcept nogil


cdef struct Check:
    unsigned char key[KEY]
    unsigned char digest[DIGEST]
    unsigned char signature[SIGNATURE]
    bint good


def verify_all(size_t parse, size_t verify, size_t context, list checks not None):
    """Return for each check whether its signature is good; None if a key has another size.

    A check is a key as libsecp256k1 holds it, a digest and a compact signature. `parse` and
    `verify` are the addresses of `secp256k1_ecdsa_signature_parse_compact` and
    `secp256k1_ecdsa_verify`.
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
                _check(<Parse>parse, <Verify>verify, <const void *>context, &held[index])
        return [held[index].good for index in range(count)]
    finally:
        PyMem_Free(held)


cdef bint _copy(check, Check *held) except -1:
    cdef bytes key, digest, signature
    key, digest, signature = check
    if size_of(key) != KEY or size_of(digest) != DIGEST:
        return False
    held.good = size_of(signature) == SIGNATURE
    if held.good:
        memcpy(held.key, content(key), KEY)
        memcpy(held.digest, content(digest), DIGEST)
        memcpy(held.signature, content(signature), SIGNATURE)
    return True


cdef void _check(Parse parse, Verify verify, const void *context, Check *check) noexcept nogil:
    cdef unsigned char parsed[SIGNATURE]
    if check.good:
        check.good = parse(context, parsed, check.signature) == 1
    if check.good:
        check.good = verify(context, parsed, check.digest, check.key) == 1
