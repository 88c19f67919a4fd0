# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
"""Commits proven by prove.h, and keys and signatures of secp256k1 by libsecp256k1, both beside this
file. `prove` takes many commits at once, and holds the interpreter only to pass them.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport PyObject
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from rsky_pipeline.atproto.native.common cimport content, size_of

from rsky_pipeline.atproto import rules
from rsky_pipeline.atproto.cid import Cid

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

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object, Py_ssize_t *) except NULL
    int PyBytes_AsStringAndSize(object, char **, Py_ssize_t *) except -1
    PyObject *PyTuple_GetItem(object, Py_ssize_t) except NULL
    Py_ssize_t PyTuple_Size(object) except -1

cdef extern from "prove.h" nogil:
    enum:
        MAX_BLOCK
        MAX_ENTRIES
        MAX_KEY
        MAX_RKEY
        GOOD
        BAD
    ctypedef const unsigned char *Bytes
    ctypedef enum Mode:
        CHECK_ALL
    ctypedef struct Operation:
        Bytes path, cid, prev
        size_t path_size
        char action, kept
    ctypedef struct Commit:
        Bytes did, rev, time, root, blocks, prev_data
        size_t did_size, time_size, blocks_size
        long long seq
        const Operation *operations
        size_t operations_count
        secp256k1_pubkey key
        char has_key, proven
        int signature
        unsigned char data[36]
        Bytes commit
        size_t commit_size, first_event, events_count
    ctypedef struct Output:
        unsigned char *start
    ctypedef struct Proofs:
        Output events
        size_t *ends
        double seconds[3]
    void prove_commits(Proofs *, Commit *, size_t, Mode, size_t)
    void free_proofs(Proofs *)
    void set_letters(Bytes, size_t)
    void sha256(Bytes, size_t, unsigned char *)
    void sha256_choose(int)

cdef enum:
    CID = 36
    REV = 13
    NUMBER = 32  # bytes of a digest, and of a private key
    SIGNATURE = 64
    COMPRESSED = 33  # bytes of a point
    UNCOMPRESSED = 65

if (MAX_BLOCK, MAX_ENTRIES, MAX_KEY, MAX_RKEY) != (
    rules.MAX_BLOCK, rules.MAX_ENTRIES, rules.MAX_KEY, rules.MAX_RKEY
):
    raise ImportError("prove.h has other limits than rules.py")
cdef bytes _LETTERS = rules.KEY_LETTERS.encode("ascii")
set_letters(<Bytes>content(_LETTERS), size_of(_LETTERS))
sha256_choose(True)
secp256k1_selftest()
# For private keys; public ones need no tables, so that the static context does. Never given back.
cdef secp256k1_context *_SIGNING = secp256k1_context_create(SECP256K1_CONTEXT_NONE)


def load_key(bytes point not None):
    """Return a point in the form that `verify` takes, None if it is not of the curve.

    The hybrid form of a point, which nobody uses, is refused.
    """
    cdef secp256k1_pubkey key
    cdef const unsigned char *start = <Bytes>content(point)
    cdef size_t size = size_of(point)
    if not (
        size == COMPRESSED and 2 <= start[0] <= 3 or size == UNCOMPRESSED and start[0] == 4
    ) or not secp256k1_ec_pubkey_parse(secp256k1_context_static, &key, start, size):
        return None
    return PyBytes_FromStringAndSize(<char *>key.data, sizeof(secp256k1_pubkey))


def verify(bytes key not None, bytes digest not None, bytes signature not None):
    """Return whether a compact signature, whose s must be low, is good; None for another size of
    the key, which is one of `load_key`, or of the digest."""
    cdef secp256k1_ecdsa_signature parsed
    cdef secp256k1_pubkey point
    if size_of(key) != sizeof(secp256k1_pubkey) or size_of(digest) != NUMBER:
        return None
    memcpy(point.data, content(key), sizeof(secp256k1_pubkey))
    return (
        size_of(signature) == SIGNATURE
        and secp256k1_ecdsa_signature_parse_compact(
            secp256k1_context_static, &parsed, <Bytes>content(signature)
        ) == 1
        and secp256k1_ecdsa_verify(
            secp256k1_context_static, &parsed, <Bytes>content(digest), &point
        ) == 1
    )


def sign(bytes secret not None, bytes digest not None):
    """Return the compact low-S signature that RFC 6979 gives, None for what is no private key."""
    cdef secp256k1_ecdsa_signature made
    cdef unsigned char compact[SIGNATURE]
    if size_of(secret) != NUMBER or size_of(digest) != NUMBER or not secp256k1_ecdsa_sign(
        _SIGNING, &made, <Bytes>content(digest),
        <Bytes>content(secret), NULL, NULL,
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
        _SIGNING, &key, <Bytes>content(secret)
    ):
        return None
    secp256k1_ec_pubkey_serialize(_SIGNING, point, &size, &key, SECP256K1_EC_COMPRESSED)
    return PyBytes_FromStringAndSize(<char *>point, COMPRESSED)


def digest(bytes data not None, bint instructions):
    """Return the SHA-256 of bytes, with or without the instructions of the processor for it.

    For tests: no other thread may prove anything meanwhile.
    """
    cdef unsigned char found[NUMBER]
    sha256_choose(instructions)
    sha256(<Bytes>content(data), size_of(data), found)
    sha256_choose(True)
    return PyBytes_FromStringAndSize(<char *>found, NUMBER)


def prove(given, int mode, size_t most):
    """Return what was found of each commit, None where it is left to Python; and seconds spent.

    A commit is a CommitMessage, those of its operations of which events are made, in their order,
    and the key of its account as `load_key` gives it, None where it is not known or of another
    curve. `mode` is 0 for the records alone, 1 for the commit object as well, 2 for all blocks, from
    which the operations lead back to the tree of `prevData`. `most` bytes of events may come of one
    commit.

    Found are the root of its tree and whether the signature is good (None where it was not
    checked, and for both in mode 0), the block of the commit object unless that is so, and the
    events. Seconds are those for blocks and records, for operations, and for signatures.
    """
    cdef tuple alive = tuple(given)
    cdef Py_ssize_t count = len(alive), index, ops = 0
    cdef Proofs proofs
    cdef Commit *commits = NULL
    cdef Operation *operations = NULL
    memset(&proofs, 0, sizeof(Proofs))
    for message, _, _ in alive:
        ops += PyTuple_Size(_item(message, 6))
    try:
        commits = <Commit *>calloc(count + 1, sizeof(Commit))
        operations = <Operation *>calloc(ops + 1, sizeof(Operation))
        if commits is NULL or operations is NULL:
            raise MemoryError
        ops = 0
        for index in range(count):
            message, kept, key = alive[index]
            ops += _fill(&commits[index], &operations[ops], message, kept, key)
        with nogil:
            prove_commits(&proofs, commits, count, <Mode>mode, most)
        return (
            [_found(&commits[index], &proofs, mode) for index in range(count)],
            (proofs.seconds[0], proofs.seconds[1], proofs.seconds[2]),
        )
    finally:
        free(commits)
        free(operations)
        free_proofs(&proofs)


cdef inline object _item(object items, Py_ssize_t index):
    return <object>PyTuple_GetItem(items, index)  # also of a subclass


cdef Py_ssize_t _fill(Commit *commit, Operation *operations, message, kept, key) except -1:
    """Refer to the fields of a message, which lives as long; return how many operations it has."""
    cdef Py_ssize_t size, index, next_kept = 0, count, kept_count = PyTuple_Size(kept)
    cdef object ops = _item(message, 6), op, wanted = None
    commit.seq = _item(message, 0)
    commit.did = <Bytes>PyUnicode_AsUTF8AndSize(_item(message, 1), &size)
    commit.did_size = size
    commit.rev = <Bytes>PyUnicode_AsUTF8AndSize(_item(message, 2), &size)
    if size != REV or commit.seq < 0:
        raise ValueError("not a commit as read")
    commit.root = _cid(_item(message, 4))
    PyBytes_AsStringAndSize(_item(message, 5), <char **>&commit.blocks, &size)
    commit.blocks_size = size
    commit.prev_data = _cid(_item(message, 7))
    commit.time = <Bytes>PyUnicode_AsUTF8AndSize(_item(message, 8), &size)
    commit.time_size = size
    if key is not None:
        if size_of(<bytes?>key) != sizeof(secp256k1_pubkey):
            raise ValueError("not a key")
        memcpy(commit.key.data, content(<bytes>key), sizeof(secp256k1_pubkey))
        commit.has_key = True
    count = PyTuple_Size(ops)
    commit.operations, commit.operations_count = operations, count
    if kept_count:
        wanted = _item(kept, 0)
    for index in range(count):
        op = _item(ops, index)
        operations[index].action = PyUnicode_AsUTF8AndSize(_item(op, 0), &size)[0]
        operations[index].path = <Bytes>PyUnicode_AsUTF8AndSize(_item(op, 1), &size)
        operations[index].path_size = size
        operations[index].cid = _cid(_item(op, 2))
        operations[index].prev = _cid(_item(op, 3))
        if op is wanted:
            operations[index].kept = True
            next_kept += 1
            wanted = _item(kept, next_kept) if next_kept < kept_count else None
    if next_kept != kept_count:
        raise ValueError("not operations of this commit")
    return count


cdef Bytes _cid(cid) except? NULL:
    """Refer to a CID; NULL for None."""
    cdef char *start = NULL
    cdef Py_ssize_t size = 0
    if cid is None:
        return NULL
    PyBytes_AsStringAndSize(cid, &start, &size)
    if size != CID:
        raise ValueError("not a CID")
    return <Bytes>start


cdef tuple _found(Commit *commit, Proofs *proofs, int mode):
    cdef list events = []
    cdef object data = None, good = None, block = None
    cdef size_t index, start = 0, end
    if not commit.proven:
        return None
    for index in range(commit.first_event, commit.first_event + commit.events_count):
        start = proofs.ends[index - 1] if index else 0
        end = proofs.ends[index]
        events.append(PyBytes_FromStringAndSize(<char *>proofs.events.start + start, end - start))
    if mode:
        data = Cid(PyBytes_FromStringAndSize(<char *>commit.data, CID))
        if commit.signature == GOOD:
            return data, True, None, events
        good = False if commit.signature == BAD else None
        block = PyBytes_FromStringAndSize(<char *>commit.commit, commit.commit_size)
    return data, good, block, events
