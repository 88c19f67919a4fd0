# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
"""What the compiled readers share: parts of bytes, links, and the heads of CBOR items."""

from cpython.bytes cimport PyBytes_FromStringAndSize

cdef extern from *:
    """
    /* One file for all versions of Python has functions in place of macros. */
    #ifdef Py_LIMITED_API
    #define CONTENT(object) PyBytes_AsString(object)
    #define SIZE(object) PyBytes_Size(object)
    #else
    #define CONTENT(object) PyBytes_AS_STRING(object)
    #define SIZE(object) PyBytes_GET_SIZE(object)
    #endif
    """
    char *content "CONTENT"(bytes object)
    Py_ssize_t size_of "SIZE"(bytes object)

cdef enum:
    CID_LENGTH = 36


cdef inline bytes cut(bytes data, Py_ssize_t start, Py_ssize_t end):
    if not 0 <= start <= end <= size_of(data):
        raise IndexError
    return PyBytes_FromStringAndSize(content(data) + start, end - start)


cdef inline bint is_cid(bytes data, Py_ssize_t at) except -1:
    """Tell whether a CID begins there, as far as its prefix goes."""
    cdef unsigned char codec = data[at + 1]
    return (
        data[at] == 1 and (codec == 0x71 or codec == 0x55)
        and data[at + 2] == 0x12 and data[at + 3] == 0x20
    )


cdef inline bint is_link(bytes data, Py_ssize_t at) except -1:
    """Tell whether the head of a link stands there; the CID is 5 bytes on."""
    return (
        data[at] == 0xD8 and data[at + 1] == 0x2A and data[at + 2] == 0x58
        and data[at + 3] == 0x25 and data[at + 4] == 0 and is_cid(data, at + 5)
    )


cdef inline bint is_key_letter(unsigned char c):
    return (
        c"a" <= c <= c"z" or c"A" <= c <= c"Z" or c"-" <= c <= c":" and c != c"/"
        or c == c"_" or c == c"~"
    )


cdef inline Py_ssize_t read_number(bytes data, Py_ssize_t *at, unsigned char kind) except -2:
    """Read a head of one kind whose number is below 65,536 and as short as can be, else -1."""
    cdef unsigned char head = data[at[0]]
    cdef Py_ssize_t number
    if head < kind or head > kind + 25:
        return -1
    number = head - kind
    at[0] += 1
    if number < 24:
        return number
    if number == 24:
        number = data[at[0]]
        at[0] += 1
        return number if number >= 24 else -1
    number = (<Py_ssize_t>data[at[0]] << 8) | data[at[0] + 1]
    at[0] += 2
    return number if number >= 256 else -1
