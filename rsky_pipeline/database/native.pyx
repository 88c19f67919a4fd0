# cython: language_level=3
"""Texts in the binary forms of PostgreSQL, compiled. None leaves everything else to Python.

Each function goes over its texts twice: once to learn how much room they need, once to fill it.
"""

from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.string cimport memcpy

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef enum:
    TEXT_OID = 25
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
    at = PyBytes_AsString(packed)
    _put(at, 1, 4)  # dimensions
    _put(at + 4, nulls, 4)
    _put(at + 8, TEXT_OID, 4)
    _put(at + 12, len(given), 4)
    _put(at + 16, 1, 4)  # the index of the first
    at += ARRAY_HEAD
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
