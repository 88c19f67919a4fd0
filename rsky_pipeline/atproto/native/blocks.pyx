# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
"""Blocks of a CAR, and records as JSON."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.string cimport memcpy

from rsky_pipeline.atproto.native.common cimport (
    CID_LENGTH, content, cut, follows, is_cid, is_link, read_number, set_rules, size_of,
)

from base64 import b64encode
from hashlib import sha256

from rsky_pipeline.atproto import rules
from rsky_pipeline.atproto.cid import Cid

set_rules(rules.KEY_LETTERS, rules.MAX_RKEY)
cdef Py_ssize_t MAX_SECTION = CID_LENGTH + rules.MAX_BLOCK

cdef enum:
    USUAL_DEPTH = 32  # of records
    USUAL_RECORD = 65_536  # bytes

cdef bytes _HEX = b"0123456789abcdef"
cdef bytes _BASE32 = b"abcdefghijklmnopqrstuvwxyz234567"


def read_blocks(bytes data not None, Py_ssize_t position):
    """Return the blocks that begin at a position, each with the hash it is named by, or None."""
    try:
        return _blocks(data, position)
    except IndexError:
        return None


cdef dict _blocks(bytes data, Py_ssize_t position):
    cdef Py_ssize_t end = size_of(data), length
    cdef bytes name, block
    cdef dict blocks = {}
    while position < end:
        length = _length(data, &position)
        if length < CID_LENGTH or length > MAX_SECTION:
            return None
        name = cut(data, position, position + CID_LENGTH)
        if not is_cid(name, 0):
            return None
        block = cut(data, position + CID_LENGTH, position + length)
        if sha256(block).digest() != cut(name, 4, CID_LENGTH):
            return None
        blocks[Cid(name)] = block
        position += length
    return blocks


cdef Py_ssize_t _length(bytes data, Py_ssize_t *position) except -2:
    """Read the length of a section, or return -1 unless it is in its shortest form."""
    cdef Py_ssize_t length = 0
    cdef unsigned char byte
    cdef int shift
    for shift in range(0, 35, 7):
        byte = data[position[0]]
        position[0] += 1
        length |= <Py_ssize_t>(byte & 0x7F) << shift
        if byte < 0x80:
            return -1 if byte == 0 and shift else length
    return -1


def record_json(bytes block not None):
    """Return the JSON of a record's block, or None unless it is canonical and usual."""
    cdef Output out
    if size_of(block) > USUAL_RECORD:
        return None
    begin(&out, 2 * size_of(block))
    try:
        return _taken(&out) if _record(block, &out) else None
    except (IndexError, UnicodeDecodeError):
        return None
    finally:
        PyMem_Free(out.start)


cdef struct Output:
    unsigned char *start
    Py_ssize_t size
    Py_ssize_t room
    bint ascii  # whether no byte of a record was above 127


cdef int begin(Output *out, Py_ssize_t room) except -1:
    out.start = <unsigned char *>PyMem_Malloc(room + 1)
    if out.start is NULL:
        raise MemoryError
    out.size, out.room, out.ascii = 0, room, True
    return 0


cdef inline int reserve(Output *out, Py_ssize_t more) except -1:
    cdef unsigned char *start
    if out.size + more > out.room:
        start = <unsigned char *>PyMem_Realloc(out.start, 2 * (out.size + more) + 1)
        if start is NULL:
            raise MemoryError
        out.start, out.room = start, 2 * (out.size + more)
    return 0


cdef inline int put(Output *out, bytes text) except -1:
    return put_part(out, text, 0, size_of(text))


cdef inline int put_part(Output *out, bytes data, Py_ssize_t start, Py_ssize_t end) except -1:
    if not 0 <= start <= end <= size_of(data):
        raise IndexError
    reserve(out, end - start)
    memcpy(out.start + out.size, content(data) + start, end - start)
    out.size += end - start
    return 0


cdef inline int put_byte(Output *out, unsigned char c) except -1:
    reserve(out, 1)
    out.start[out.size] = c
    out.size += 1
    return 0


cdef bytes _taken(Output *out):
    """Return the output, which must be UTF-8 (UnicodeDecodeError)."""
    cdef bytes made = PyBytes_FromStringAndSize(<char *>out.start, out.size)
    if not out.ascii:
        made.decode("utf-8")
    return made


cdef bint _record(bytes block, Output *out) except -1:
    """Append the JSON of a record's block if it is canonical and usual."""
    return (
        size_of(block) > 0 and block[0] >> 5 == 5
        and _value(block, 0, out, USUAL_DEPTH) == size_of(block)
    )


cdef Py_ssize_t _value(bytes data, Py_ssize_t at, Output *out, int depth) except -2:
    """Append the JSON of the item at a position, and return where it ends; -1 if it is unusual."""
    cdef unsigned char head = data[at], kind = head >> 5, low = head & 0x1F
    cdef unsigned long long number = low
    cdef Py_ssize_t count, start
    if head == 0xD8:
        if not is_link(data, at):
            return -1
        put(out, b'{"$link":"')
        _put_base32(out, data, at + 5)
        put(out, b'"}')
        return at + 5 + CID_LENGTH
    if kind == 7:
        if head == 0xF5:
            put(out, b"true")
        elif head == 0xF4:
            put(out, b"false")
        elif head == 0xF6:
            put(out, b"null")
        else:
            return -1
        return at + 1
    at += 1
    if low > 23:
        if low > 27:
            return -1
        number = 0
        for count in range(1 << (low - 24)):
            number = (number << 8) | data[at]
            at += 1
        if number < 24 or low > 24 and number >> (8 << (low - 25)) == 0:
            return -1  # not in its shortest form
    if kind < 2:
        if number > <unsigned long long>0x7FFFFFFFFFFFFFFF:
            return -1
        put(out, b"%d" % (number if kind == 0 else -1 - <long long>number))
        return at
    if kind == 6 or number > USUAL_RECORD:
        return -1
    count = number
    if kind == 3:
        return _text(data, at, at + count, out)
    if kind == 2:
        put(out, b'{"$bytes":"')
        put(out, b64encode(cut(data, at, at + count)).rstrip(b"="))
        put(out, b'"}')
        return at + count
    if depth == 0:
        return -1
    if kind == 4:
        put_byte(out, c"[")
        for start in range(count):
            if start:
                put_byte(out, c",")
            at = _value(data, at, out, depth - 1)
            if at < 0:
                return -1
        put_byte(out, c"]")
        return at
    return _map(data, at, count, out, depth)


cdef Py_ssize_t _map(
    bytes data, Py_ssize_t at, Py_ssize_t count, Output *out, int depth
) except -2:
    cdef Py_ssize_t index, size, before = 0, before_size = -1
    put_byte(out, c"{")
    for index in range(count):
        size = read_number(data, &at, 0x60)
        if not follows(data, before, before_size, at, size):
            return -1
        before, before_size = at, size
        if index:
            put_byte(out, c",")
        at = _text(data, at, at + size, out)
        put_byte(out, c":")
        at = _value(data, at, out, depth - 1)
        if at < 0:
            return -1
    put_byte(out, c"}")
    return at


cdef Py_ssize_t _text(bytes data, Py_ssize_t start, Py_ssize_t end, Output *out) except -2:
    """Append a text in quotes, its bytes as they are where JSON allows; return its end."""
    cdef Py_ssize_t at, plain = start
    cdef unsigned char c, seen = 0
    put_byte(out, c'"')
    for at in range(start, end):
        c = data[at]
        seen |= c
        if c >= 0x20 and c != c'"' and c != c"\\":
            continue
        put_part(out, data, plain, at)
        plain = at + 1
        put_byte(out, c"\\")
        if c == c'"' or c == c"\\":
            put_byte(out, c)
        elif c == c"\n":
            put_byte(out, c"n")
        elif c == c"\r":
            put_byte(out, c"r")
        elif c == c"\t":
            put_byte(out, c"t")
        elif c == 8:
            put_byte(out, c"b")
        elif c == 12:
            put_byte(out, c"f")
        else:
            put(out, b"u00")
            put_byte(out, <unsigned char>_HEX[c >> 4])
            put_byte(out, <unsigned char>_HEX[c & 15])
    if seen > 127:
        out.ascii = False
    put_part(out, data, plain, end)
    put_byte(out, c'"')
    return end


cdef int _put_base32(Output *out, bytes data, Py_ssize_t start) except -1:
    """Append the text of the CID that stands there."""
    cdef unsigned int bits = 0
    cdef int held = 0
    cdef Py_ssize_t index
    if not 0 <= start <= size_of(data) - CID_LENGTH:
        raise IndexError
    reserve(out, 59)
    out.start[out.size] = c"b"
    out.size += 1
    for index in range(start, start + CID_LENGTH):
        bits = (bits << 8) | <unsigned char>data[index]
        held += 8
        while held >= 5:
            held -= 5
            out.start[out.size] = _BASE32[(bits >> held) & 31]
            out.size += 1
    out.start[out.size] = _BASE32[(bits << (5 - held)) & 31]
    out.size += 1
    return 0
