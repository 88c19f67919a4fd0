# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
"""Blocks of a CAR, and records as JSON."""

from cpython.bytes cimport PyBytes_FromStringAndSize

from rsky_pipeline.atproto.native.common cimport (
    CID_LENGTH, cut, is_cid, is_link, read_number, size_of,
)

from base64 import b64encode
from hashlib import sha256

from rsky_pipeline.atproto.cid import Cid

cdef enum:
    MAX_DEPTH = 32  # of records; deeper ones are left to the decoder
    MAX_RECORD = 65_536  # bytes

cdef bytes _HEX = b"0123456789abcdef"
cdef bytes _BASE32 = b"abcdefghijklmnopqrstuvwxyz234567"


def read_blocks(bytes data not None, Py_ssize_t position, Py_ssize_t largest, bint check_hashes):
    """Return the blocks that begin at a position, each with the hash it is named by, or None.

    `largest` is the size of the largest section in bytes, the CID included.
    """
    try:
        return _blocks(data, position, largest, check_hashes, None)
    except IndexError:
        return None


def find_wanted(bytes data not None, Py_ssize_t position, Py_ssize_t largest, wanted):
    """Return the blocks of a CAR that are wanted, hashes unchecked; None if it is malformed."""
    try:
        return _blocks(data, position, largest, False, wanted)
    except IndexError:
        return None


cdef dict _blocks(bytes data, Py_ssize_t position, Py_ssize_t largest, bint check_hashes, wanted):
    cdef Py_ssize_t end = size_of(data), length, shift
    cdef unsigned char byte
    cdef bytes name, block
    cdef dict blocks = {}
    while position < end:
        length = 0
        shift = 0
        while True:
            byte = data[position]
            position += 1
            length |= <Py_ssize_t>(byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    return None  # not in its shortest form
                break
            shift += 7
            if shift > 28:
                return None
        name = cut(data, position, position + CID_LENGTH)
        if wanted is None:
            if length < CID_LENGTH or length > largest or not is_cid(name, 0):
                return None
            block = cut(data, position + CID_LENGTH, position + length)
            if check_hashes and sha256(block).digest() != cut(name, 4, CID_LENGTH):
                return None
            blocks[Cid(name)] = block
        elif name in wanted:
            if length < CID_LENGTH or length > largest:
                return None
            blocks[name] = cut(data, position + CID_LENGTH, position + length)
        position += length
    return blocks if position == end else None


def record_json(bytes block not None):
    """Return the JSON of a record's block, or None for what is not canonical or not usual."""
    cdef bytearray out
    cdef Py_ssize_t end
    cdef bytes made
    if not 0 < size_of(block) <= MAX_RECORD:
        return None
    out = bytearray()
    try:
        if block[0] >> 5 != 5:
            return None
        end = _value(block, 0, out, MAX_DEPTH)
        if end != size_of(block):
            return None
        made = bytes(out)
        made.decode("utf-8")
    except (IndexError, UnicodeDecodeError):
        return None
    return made


cdef Py_ssize_t _value(bytes data, Py_ssize_t at, bytearray out, int depth) except -2:
    """Append the JSON of the item at a position, and return where it ends; -1 if it is unusual."""
    cdef unsigned char head = data[at], kind = head >> 5, low = head & 0x1F
    cdef unsigned long long number = low
    cdef Py_ssize_t count, start
    if head == 0xD8:
        if not is_link(data, at):
            return -1
        out += b'{"$link":"'
        out += _base32(cut(data, at + 5, at + 5 + CID_LENGTH))
        out += b'"}'
        return at + 5 + CID_LENGTH
    if kind == 7:
        if head == 0xF5:
            out += b"true"
        elif head == 0xF4:
            out += b"false"
        elif head == 0xF6:
            out += b"null"
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
        out += b"%d" % (number if kind == 0 else -1 - <long long>number)
        return at
    if kind == 6 or number > MAX_RECORD:
        return -1
    count = number
    if kind == 3:
        return _text(data, at, at + count, out)
    if kind == 2:
        out += b'{"$bytes":"'
        out += b64encode(cut(data, at, at + count)).rstrip(b"=")
        out += b'"}'
        return at + count
    if depth == 0:
        return -1
    if kind == 4:
        out.append(c"[")
        for start in range(count):
            if start:
                out.append(c",")
            at = _value(data, at, out, depth - 1)
            if at < 0:
                return -1
        out.append(c"]")
        return at
    return _map(data, at, count, out, depth)


cdef Py_ssize_t _map(
    bytes data, Py_ssize_t at, Py_ssize_t count, bytearray out, int depth
) except -2:
    cdef Py_ssize_t index, size, place, before = 0, before_size = -1
    cdef int order
    out.append(c"{")
    for index in range(count):
        size = read_number(data, &at, 0x60)
        if size < 0 or size < before_size:
            return -1
        if size == before_size:  # ascending keys are different keys
            order = 0
            for place in range(size):
                order = <int>data[at + place] - <int>data[before + place]
                if order:
                    break
            if order <= 0:
                return -1
        before, before_size = at, size
        if index:
            out.append(c",")
        at = _text(data, at, at + size, out)
        out.append(c":")
        at = _value(data, at, out, depth - 1)
        if at < 0:
            return -1
    out.append(c"}")
    return at


cdef Py_ssize_t _text(bytes data, Py_ssize_t start, Py_ssize_t end, bytearray out) except -2:
    """Append a text in quotes, its bytes as they are where JSON allows; return its end."""
    cdef Py_ssize_t at, plain = start
    cdef unsigned char c
    out.append(c'"')
    for at in range(start, end):
        c = data[at]
        if c >= 0x20 and c != c'"' and c != c"\\":
            continue
        if plain < at:
            out += cut(data, plain, at)
        plain = at + 1
        out.append(c"\\")
        if c == c'"' or c == c"\\":
            out.append(c)
        elif c == c"\n":
            out.append(c"n")
        elif c == c"\r":
            out.append(c"r")
        elif c == c"\t":
            out.append(c"t")
        elif c == 8:
            out.append(c"b")
        elif c == 12:
            out.append(c"f")
        else:
            out += b"u00"
            out.append(_HEX[c >> 4])
            out.append(_HEX[c & 15])
    if plain < end:
        out += cut(data, plain, end)
    out.append(c'"')
    return end


cdef bytes _base32(bytes cid):
    cdef unsigned char text[59]
    cdef unsigned int bits = 0
    cdef int held = 0, at = 1
    cdef Py_ssize_t index
    if size_of(cid) != CID_LENGTH:
        raise IndexError
    text[0] = c"b"
    for index in range(CID_LENGTH):
        bits = (bits << 8) | <unsigned char>cid[index]
        held += 8
        while held >= 5:
            held -= 5
            text[at] = _BASE32[(bits >> held) & 31]
            at += 1
    text[at] = _BASE32[(bits << (5 - held)) & 31]
    return PyBytes_FromStringAndSize(<char *>text, 59)
