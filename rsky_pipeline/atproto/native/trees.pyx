# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
"""Nodes of a tree, and undoing the operations of a commit."""

from cpython.bytes cimport PyBytes_FromStringAndSize

from rsky_pipeline.atproto.native.common cimport (
    CID_LENGTH, cut, is_key_letter, is_link, read_number, set_rules, size_of,
)

from hashlib import sha256

from rsky_pipeline.atproto import rules
from rsky_pipeline.atproto.rules import layer_of

set_rules(rules.KEY_LETTERS, rules.MAX_RKEY)
cdef Py_ssize_t MAX_KEY = rules.MAX_KEY
cdef Py_ssize_t MAX_ENTRIES = rules.MAX_ENTRIES

cdef enum:
    USUAL_CHANGES = 16  # that each hash the nodes above them; Python does so once for all


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


class _Unusual(Exception):
    """Something that is left to Python."""


cdef class _Partial:
    """A partial tree, with what undoing has made of it: nodes and their layers by their CIDs."""

    cdef object blocks
    cdef dict known

    def __cinit__(self, blocks):
        self.blocks = blocks
        self.known = {}

    cdef tuple load(self, bytes cid, int layer):
        """Return keys, values and children of a node that must be on a layer."""
        cdef tuple node, found = self.known.get(cid)
        if found is not None:
            if found[1] != layer:
                raise _Unusual
            return found[0]
        node = self.read(cid)
        if node[0]:
            if layer_of(node[0][0]) != layer:
                raise _Unusual
        elif node[2][0] is None:
            raise _Unusual
        if layer == 0 and not _is_bottom(node[2]):
            raise _Unusual
        self.known[cid] = (node, layer)
        return node

    cdef tuple read(self, bytes cid):
        block = self.blocks.get(cid)
        node = _node(block) if type(block) is bytes else None
        if node is None:
            raise _Unusual
        return node

    cdef bytes store(self, list keys, list values, list children, int layer):
        """Return the CID of a new node; None if there is nothing in it."""
        cdef bytes cid
        if not keys and children[0] is None:
            return None
        cid = b"\x01\x71\x12\x20" + sha256(_written(keys, values, children)).digest()
        self.known[cid] = ((keys, values, children), layer)
        return cid

    cdef bytes undo(self, bytes cid, int layer, bytes key, bytes after, before):
        """Return the CID of a subtree once a key holds what it held before; None if it is empty."""
        cdef list keys, values, children
        cdef Py_ssize_t index
        keys, values, children = self.load(cid, layer)
        index = _place(keys, key)
        if index < len(keys) and keys[index] == key:
            if values[index] != after:
                raise _Unusual
            if before is not None:
                values = values.copy()
                values[index] = before
                return self.store(keys, values, children, layer)
            merged = self.merge(children[index], children[index + 1], layer - 1)
            return self.store(
                keys[:index] + keys[index + 1 :],
                values[:index] + values[index + 1 :],
                [*children[:index], merged, *children[index + 2 :]],
                layer,
            )
        if children[index] is None or layer == 0:
            raise _Unusual
        children = children.copy()
        children[index] = self.undo(children[index], layer - 1, key, after, before)
        return self.store(keys, values, children, layer)

    cdef bytes merge(self, left, right, int layer):
        """Join two neighbouring subtrees of a layer."""
        cdef list keys, values, children, more_keys, more_values, more_children
        if left is None or right is None:
            return right if left is None else left
        keys, values, children = self.load(left, layer)
        more_keys, more_values, more_children = self.load(right, layer)
        middle = self.merge(children[len(children) - 1], more_children[0], layer - 1)
        return self.store(
            keys + more_keys,
            values + more_values,
            [*children[: len(children) - 1], middle, *more_children[1:]],
            layer,
        )

    cdef bytes trim(self, bytes top, int layer):
        """Return the CID of a tree once nodes without keys are taken off its top."""
        while top is not None and (top in self.known or top in self.blocks):
            node = self.load(top, layer)
            if node[0]:
                break
            top = node[2][0]
            layer -= 1
        return top


def undo_changes(blocks, bytes root not None, list changes not None):
    """Return the root of a partial tree before changes: each a key, its value after and before.

    None leaves it to Python, as everything that would bring a key back.
    """
    cdef bytes top = root
    cdef tuple node
    cdef _Partial tree = _Partial(blocks)
    cdef int layer
    if len(changes) > USUAL_CHANGES:
        return None
    try:
        node = tree.read(root)
        if not node[0]:
            return None
        layer = layer_of(node[0][0])
        for key, after, before in changes:
            if after is None or top is None:
                return None
            top = tree.undo(
                top, layer, key, bytes(after), None if before is None else bytes(before)
            )
        return tree.trim(top, layer)
    except (IndexError, _Unusual):
        return None


cdef bint _is_bottom(list children):
    for child in children:
        if child is not None:
            return False
    return True


cdef Py_ssize_t _place(list keys, bytes key):
    """Return the index of the first key that is not below a key."""
    cdef Py_ssize_t index
    for index in range(len(keys)):
        if <bytes>keys[index] >= key:
            return index
    return len(keys)


cdef bytes _written(list keys, list values, list children):
    cdef list parts = [b"\xa2ae", _head(0x80, len(keys))]
    cdef bytes previous = b"", key
    cdef Py_ssize_t index, shared, shortest
    for index in range(len(keys)):
        key = keys[index]
        shortest = min(size_of(previous), size_of(key))
        shared = 0
        while shared < shortest and previous[shared] == key[shared]:
            shared += 1
        parts.append(b"\xa4ak")
        parts.append(_head(0x40, size_of(key) - shared))
        parts.append(cut(key, shared, size_of(key)))
        parts.append(b"ap")
        parts.append(_head(0, shared))
        _add_child(parts, b"at", children[index + 1])
        parts.append(b"av\xd8\x2a\x58\x25\x00")
        parts.append(values[index])
        previous = key
    _add_child(parts, b"al", children[0])
    return b"".join(parts)


cdef int _add_child(list parts, bytes name, child) except -1:
    parts.append(name)
    if child is None:
        parts.append(b"\xf6")
    else:
        parts.append(b"\xd8\x2a\x58\x25\x00")
        parts.append(child)
    return 0


cdef bytes _head(unsigned char kind, Py_ssize_t number):
    """Return the head of a CBOR item: its kind, and a length or number below 65,536."""
    cdef unsigned char head[3]
    if number < 24:
        head[0] = kind + number
        return PyBytes_FromStringAndSize(<char *>head, 1)
    if number < 256:
        head[0] = kind + 24
        head[1] = number
        return PyBytes_FromStringAndSize(<char *>head, 2)
    if number > 0xFFFF:
        raise IndexError
    head[0] = kind + 25
    head[1] = number >> 8
    head[2] = number & 0xFF
    return PyBytes_FromStringAndSize(<char *>head, 3)
