# cython: language_level=3
"""Arrays and rows in the binary forms of PostgreSQL, compiled. None leaves everything else to Python.

Each function goes over its items twice: once to learn how much room they need, once to fill it.
"""

from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.string cimport memcpy

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1

cdef enum:
    TEXT_OID = 25
    BOOL_OID = 16
    INT8_OID = 20
    TEXT_ARRAY_OID = 1009
    BOOL_ARRAY_OID = 1000
    INT8_ARRAY_OID = 1016
    ARRAY_HEAD = 20
    MAX_SIZE = 0x3FFFFFFF  # PostgreSQL takes no field and no message of a gigabyte


def pack_texts(items):
    """Return the binary form of an array of texts and nulls; None if it holds anything else.

    Raises UnicodeEncodeError for a text that has no UTF-8 form.
    """
    cdef list given
    cdef Py_ssize_t room = ARRAY_HEAD, size
    cdef bytes packed
    cdef char *at
    cdef bint nulls = False
    if type(items) is not list:
        return None
    given = items
    for item in given:
        size = _room(item)
        if size < 0:
            return None
        room += size
        if item is None:
            nulls = True
    if room > MAX_SIZE:
        return None
    packed = PyBytes_FromStringAndSize(NULL, room)
    at = _put_head(PyBytes_AsString(packed), nulls, TEXT_OID, len(given))
    for item in given:
        at = _fill(at, item)
    return packed


def pack_rows(rows):
    """Return rows of texts and nulls as COPY takes them; None if they hold anything else.

    Raises UnicodeEncodeError for a text that has no UTF-8 form.
    """
    cdef list given
    cdef tuple row
    cdef Py_ssize_t room = 0, size
    cdef bytes packed
    cdef char *at
    if type(rows) is not list:
        return None
    given = rows
    for each in given:
        if type(each) is not tuple:
            return None
        row = each
        room += 2
        for item in row:
            size = _room(item)
            if size < 0:
                return None
            room += size
    if room > MAX_SIZE:
        return None
    packed = PyBytes_FromStringAndSize(NULL, room)
    at = PyBytes_AsString(packed)
    for each in given:
        row = each
        _put(at, len(row), 2)
        at += 2
        for item in row:
            at = _fill(at, item)
    return packed


def pack_array(items):
    """Return the type of an array and its binary form, nulls included; None if it has another type.

    Its type is that of its first item: text, bigint or boolean; without any, text. Raises
    UnicodeEncodeError for a text that has no UTF-8 form.
    """
    cdef list given
    cdef bytes packed
    if type(items) is not list:
        return None
    given = items
    if not given:
        return TEXT_ARRAY_OID, b"\0\0\0\0\0\0\0\0\0\0\0\x19"  # without dimensions
    for item in given:
        if item is not None:
            if type(item) is int:
                packed = _pack_numbers(given)
                return None if packed is None else (INT8_ARRAY_OID, packed)
            if type(item) is bool:
                packed = _pack_booleans(given)
                return None if packed is None else (BOOL_ARRAY_OID, packed)
            break
    packed = pack_texts(given)
    return None if packed is None else (TEXT_ARRAY_OID, packed)


cdef bytes _pack_numbers(list given):
    """Return numbers of 64 bits and nulls; None if there is anything else."""
    cdef Py_ssize_t room = ARRAY_HEAD
    cdef bytes packed
    cdef char *at
    cdef long long value
    cdef int overflow
    cdef bint nulls = False
    for item in given:
        if item is None:
            nulls = True
            room += 4
        elif type(item) is int:
            room += 12
        else:
            return None
    if room > MAX_SIZE:
        return None
    packed = PyBytes_FromStringAndSize(NULL, room)
    at = _put_head(PyBytes_AsString(packed), nulls, INT8_OID, len(given))
    for item in given:
        if item is None:
            _put(at, -1, 4)
            at += 4
            continue
        value = PyLong_AsLongLongAndOverflow(item, &overflow)
        if overflow:
            return None
        _put(at, 8, 4)
        _put(at + 4, value, 8)
        at += 12
    return packed


cdef bytes _pack_booleans(list given):
    cdef Py_ssize_t room = ARRAY_HEAD
    cdef bytes packed
    cdef char *at
    cdef bint nulls = False
    for item in given:
        if item is None:
            nulls = True
            room += 4
        elif type(item) is bool:
            room += 5
        else:
            return None
    if room > MAX_SIZE:
        return None
    packed = PyBytes_FromStringAndSize(NULL, room)
    at = _put_head(PyBytes_AsString(packed), nulls, BOOL_OID, len(given))
    for item in given:
        if item is None:
            _put(at, -1, 4)
            at += 4
            continue
        _put(at, 1, 4)
        at[4] = item is True
        at += 5
    return packed


cdef char *_put_head(char *at, bint nulls, int oid, Py_ssize_t count) noexcept:
    _put(at, 1, 4)  # dimensions
    _put(at + 4, nulls, 4)
    _put(at + 8, oid, 4)
    _put(at + 12, count, 4)
    _put(at + 16, 1, 4)  # the index of the first
    return at + ARRAY_HEAD


cdef Py_ssize_t _room(item) except -2:
    """Return how many bytes a text takes with its length before it; -1 for what is none."""
    cdef Py_ssize_t size
    if item is None:
        return 4
    if type(item) is not str:
        return -1
    PyUnicode_AsUTF8AndSize(item, &size)
    return 4 + size


cdef char *_fill(char *at, item) except NULL:
    cdef Py_ssize_t size
    cdef const char *text
    if item is None:
        _put(at, -1, 4)
        return at + 4
    text = PyUnicode_AsUTF8AndSize(item, &size)
    _put(at, size, 4)
    memcpy(at + 4, text, size)
    return at + 4 + size


cdef void _put(char *at, Py_ssize_t value, int width) noexcept:
    cdef int index
    for index in range(width):
        at[index] = <char>((value >> (8 * (width - 1 - index))) & 0xFF)
