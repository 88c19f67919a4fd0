# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
"""Nodes of a tree."""

from rsky_pipeline.atproto.native.common cimport (
    CID_LENGTH, cut, is_key_letter, is_link, read_number, set_rules, size_of,
)

from rsky_pipeline.atproto import rules

set_rules(rules.KEY_LETTERS, rules.MAX_RKEY)
cdef Py_ssize_t MAX_KEY = rules.MAX_KEY
cdef Py_ssize_t MAX_ENTRIES = rules.MAX_ENTRIES


def read_node(bytes block not None):
    """Return keys, values and children of a canonical node; None leaves it to the decoder."""
    try:
        return _node(block)
    except IndexError:
        return None


cdef tuple _node(bytes block):
    cdef Py_ssize_t at = 3, count, index, size, shared, end, slashes, place
    cdef bytes key = b"", previous
    cdef unsigned char letter
    cdef list keys = [], values = [], children = [None]
    if not (block[0] == 0xA2 and block[1] == 0x61 and block[2] == c"e"):
        return None
    count = read_number(block, &at, 0x80)
    if count < 0 or count > MAX_ENTRIES:
        return None
    for index in range(count):
        if not (block[at] == 0xA4 and block[at + 1] == 0x61 and block[at + 2] == c"k"):
            return None
        at += 3
        size = read_number(block, &at, 0x40)
        if size <= 0:
            return None
        end = at + size
        place = at
        at = end
        if not (block[at] == 0x61 and block[at + 1] == c"p"):
            return None
        at += 2
        shared = read_number(block, &at, 0)
        previous = key
        if shared < 0 or shared > size_of(previous) or shared + size > MAX_KEY:
            return None
        if shared < size_of(previous) and block[place] <= previous[shared]:
            return None  # not above the key before, or sharing more with it than stated
        key = cut(previous, 0, shared) + cut(block, place, end)
        slashes = 0
        for place in range(place, end):
            letter = block[place]
            if letter == c"/":
                slashes += 1
            elif not is_key_letter[letter]:
                return None
        for place in range(shared):
            slashes += previous[place] == c"/"
        if slashes != 1 or key[0] == c"/" or key[size_of(key) - 1] == c"/":
            return None
        keys.append(key)
        if not (block[at] == 0x61 and block[at + 1] == c"t"):
            return None
        at += 2
        at = _child(block, at, children)
        if at < 0 or not (block[at] == 0x61 and block[at + 1] == c"v"):
            return None
        at += 2
        if not is_link(block, at):
            return None
        values.append(cut(block, at + 5, at + 5 + CID_LENGTH))
        at += 5 + CID_LENGTH
    if not (block[at] == 0x61 and block[at + 1] == c"l"):
        return None
    at += 2
    at = _child(block, at, children)
    if at != size_of(block):
        return None
    children[0] = children.pop()
    return keys, values, children


cdef Py_ssize_t _child(bytes block, Py_ssize_t at, list children) except -2:
    """Append the child that stands there, and return where it ends; -1 if it is none."""
    if block[at] == 0xF6:
        children.append(None)
        return at + 1
    if not is_link(block, at) or block[at + 6] != 0x71:
        return -1
    children.append(cut(block, at + 5, at + 5 + CID_LENGTH))
    return at + 5 + CID_LENGTH
