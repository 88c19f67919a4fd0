# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
"""Shared by the compiled readers: parts of bytes, links, keys, and the heads of CBOR items."""

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
    /* Of `rules`; each module has its own, and fills it when it is imported. */
    static unsigned char is_key_letter[256];
    static Py_ssize_t max_rkey;
    """
    char *content "CONTENT"(bytes object)
    Py_ssize_t size_of "SIZE"(bytes object)
    unsigned char is_key_letter[256]
    Py_ssize_t max_rkey

cdef enum:
    CID_LENGTH = 36


cdef inline bytes cut(bytes data, Py_ssize_t start, Py_ssize_t end):
    if not 0 <= start <= end <= size_of(data):
        raise IndexError
    return PyBytes_FromStringAndSize(content(data) + start, end - start)


cdef inline bint is_cid(bytes data, Py_ssize_t at) except -1:
    """Return whether a CID begins there, as far as its prefix goes."""
    cdef unsigned char codec = data[at + 1]
    return (
        data[at] == 1 and (codec == 0x71 or codec == 0x55)
        and data[at + 2] == 0x12 and data[at + 3] == 0x20
    )


cdef inline bint is_link(bytes data, Py_ssize_t at) except -1:
    """Return whether the head of a link stands there; the CID is 5 bytes on."""
    return (
        data[at] == 0xD8 and data[at + 1] == 0x2A and data[at + 2] == 0x58
        and data[at + 3] == 0x25 and data[at + 4] == 0 and is_cid(data, at + 5)
    )


cdef inline int set_rules(str key_letters, Py_ssize_t most_of_rkey) except -1:
    global max_rkey
    max_rkey = most_of_rkey
    for letter in key_letters.encode("ascii"):
        is_key_letter[<unsigned char>letter] = True
    return 0


cdef inline long long read_number(bytes data, Py_ssize_t *at, unsigned char kind) except -2:
    """Read a head of one kind whose number is below 2^53 and as short as can be, else -1."""
    cdef unsigned char head = data[at[0]]
    cdef unsigned long long number
    cdef int width
    if head < kind or head > kind + 27:
        return -1
    number = head - kind
    at[0] += 1
    if number < 24:
        return <long long>number
    width = 1 << (number - 24)
    number = 0
    for _ in range(width):
        number = (number << 8) | data[at[0]]
        at[0] += 1
    if number < 24 or width > 1 and number >> (4 * width) == 0 or number >> 53:
        return -1
    return <long long>number


cdef inline bint follows(
    bytes data, Py_ssize_t before, Py_ssize_t before_size, Py_ssize_t at, Py_ssize_t size
) except -1:
    """Return whether one key stands behind another one as in canonical maps, so that they differ."""
    cdef Py_ssize_t index
    cdef int order
    if size != before_size:
        return size > before_size
    for index in range(size):
        order = <int>data[at + index] - <int>data[before + index]
        if order:
            return order > 0
    return False


cdef inline bint is_key(str text, Py_ssize_t start, Py_ssize_t end) except -1:
    """Return whether a record key stands there; those that begin with dots are left to Python."""
    cdef Py_ssize_t index
    cdef Py_UCS4 c
    if not start < end <= start + max_rkey:
        return False
    for index in range(start, end):
        c = text[index]
        if c > 127 or not is_key_letter[<unsigned char>c]:
            return False
    return text[start] != c"." or end - start > 2


cdef inline Py_ssize_t end_of_collection(str text, Py_ssize_t start) except -2:
    """Return where the usual NSID that begins there ends, which is at a slash, or -1."""
    cdef Py_ssize_t index, dots = 0
    cdef Py_UCS4 c, before = c"."
    for index in range(start, len(text)):
        c = text[index]
        if c == c"/":
            return index if dots >= 2 and before != c"." and index - start <= 63 else -1
        if c == c".":
            if before == c".":
                return -1
            dots += 1
        elif not (c"a" <= c <= c"z" or c"A" <= c <= c"Z"):
            return -1
        before = c
    return -1
