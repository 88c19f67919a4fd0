# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
"""Reading what is well formed, compiled: the innermost loops of frames, trees and records.

Every function here accepts a part of what its Python counterpart accepts, with the same result, and
answers None to everything else: the counterpart then decides, and says what is wrong. All indexing
is checked; where a length lies, the IndexError makes it None as well.
"""

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

from base64 import b64encode
from hashlib import sha256

from rsky_pipeline.atproto.cid import Cid

cdef enum:
    CID_LENGTH = 36
    MAX_DEPTH = 32  # of records; deeper ones are left to the decoder
    MAX_RECORD = 65_536  # bytes
    MAX_KEY = 1_024
    MAX_ENTRIES = 10_000
    MAX_CHANGES = 16  # that each hash the nodes above them; Python does so once for all

cdef bytes _HEX = b"0123456789abcdef"
cdef bytes _PLC = b"did:plc:"
cdef bytes _DATETIME = b"0000-00-00T00:00:00.000Z"
cdef bytes _BASE32 = b"abcdefghijklmnopqrstuvwxyz234567"


cdef inline bytes _cut(bytes data, Py_ssize_t start, Py_ssize_t end):
    if not 0 <= start <= end <= size_of(data):
        raise IndexError
    return PyBytes_FromStringAndSize(content(data) + start, end - start)


cdef inline bint _is_cid(bytes data, Py_ssize_t at) except -1:
    """Tell whether a CID begins there, as far as its prefix goes."""
    cdef unsigned char codec = data[at + 1]
    return (
        data[at] == 1 and (codec == 0x71 or codec == 0x55)
        and data[at + 2] == 0x12 and data[at + 3] == 0x20
    )


cdef inline bint _is_link(bytes data, Py_ssize_t at) except -1:
    """Tell whether the head of a link stands there; the CID is 5 bytes on."""
    return (
        data[at] == 0xD8 and data[at + 1] == 0x2A and data[at + 2] == 0x58
        and data[at + 3] == 0x25 and data[at + 4] == 0 and _is_cid(data, at + 5)
    )


# --- nodes of a tree ------------------------------------------------------------------------------


cdef inline bint _is_key_letter(unsigned char c):
    return (
        c"a" <= c <= c"z" or c"A" <= c <= c"Z" or c"-" <= c <= c":" and c != c"/"
        or c == c"_" or c == c"~"
    )


cdef Py_ssize_t _number(bytes data, Py_ssize_t *at, unsigned char kind) except -2:
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
    count = _number(block, &at, 0x80)
    if count < 0 or count > MAX_ENTRIES:
        return None
    for index in range(count):
        if not (block[at] == 0xA4 and block[at + 1] == 0x61 and block[at + 2] == c"k"):
            return None
        at += 3
        size = _number(block, &at, 0x40)
        if size <= 0:
            return None
        end = at + size
        place = at
        at = end
        if not (block[at] == 0x61 and block[at + 1] == c"p"):
            return None
        at += 2
        shared = _number(block, &at, 0)
        previous = key
        if shared < 0 or shared > size_of(previous) or shared + size > MAX_KEY:
            return None
        if shared < size_of(previous) and block[place] <= previous[shared]:
            return None  # not above the key before, or sharing more with it than is said
        key = _cut(previous, 0, shared) + _cut(block, place, end)
        slashes = 0
        for place in range(place, end):
            letter = block[place]
            if letter == c"/":
                slashes += 1
            elif not _is_key_letter(letter):
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
        if not _is_link(block, at):
            return None
        values.append(_cut(block, at + 5, at + 5 + CID_LENGTH))
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
    if not _is_link(block, at) or block[at + 6] != 0x71:
        return -1
    children.append(_cut(block, at + 5, at + 5 + CID_LENGTH))
    return at + 5 + CID_LENGTH


# --- undoing operations ---------------------------------------------------------------------------


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
            if _layer(node[0][0]) != layer:
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
    """Return the root of a partial tree before changes, each a key with its values after and before.

    None leaves it to Python, as everything that would bring a key back.
    """
    cdef bytes top = root
    cdef tuple node
    cdef _Partial tree = _Partial(blocks)
    cdef int layer
    if len(changes) > MAX_CHANGES:
        return None
    try:
        node = tree.read(root)
        if not node[0]:
            return None
        layer = _layer(node[0][0])
        for key, after, before in changes:
            if after is None or top is None:
                return None
            top = tree.undo(
                top, layer, key, bytes(after), None if before is None else bytes(before)
            )
        return tree.trim(top, layer)
    except (IndexError, _Unusual):
        return None


cdef int _layer(bytes key) except -1:
    """Return the layer of a key: pairs of leading zero bits of its SHA-256."""
    cdef bytes digest = sha256(key).digest()
    cdef int bits = 0
    cdef Py_ssize_t index
    cdef unsigned char c
    for index in range(32):
        c = digest[index]
        if c:
            while not c & 0x80:
                bits += 1
                c <<= 1
            break
        bits += 8
    return bits // 2


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
        parts.append(_cut(key, shared, size_of(key)))
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


# --- blocks of a CAR ------------------------------------------------------------------------------


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
        name = _cut(data, position, position + CID_LENGTH)
        if wanted is None:
            if length < CID_LENGTH or length > largest or not _is_cid(name, 0):
                return None
            block = _cut(data, position + CID_LENGTH, position + length)
            if check_hashes and sha256(block).digest() != _cut(name, 4, CID_LENGTH):
                return None
            blocks[Cid(name)] = block
        elif name in wanted:
            if length < CID_LENGTH or length > largest:
                return None
            blocks[name] = _cut(data, position + CID_LENGTH, position + length)
        position += length
    return blocks if position == end else None


# --- records as JSON ------------------------------------------------------------------------------


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
        if not _is_link(data, at):
            return -1
        out += b'{"$link":"'
        out += _base32(_cut(data, at + 5, at + 5 + CID_LENGTH))
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
        out += b64encode(_cut(data, at, at + count)).rstrip(b"=")
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
        size = _number(data, &at, 0x60)
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
            out += _cut(data, plain, at)
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
        out += _cut(data, plain, end)
    out.append(c'"')
    return end


# --- commits of the firehose ----------------------------------------------------------------------


def read_commit(body, operation, Py_ssize_t most_ops, Py_ssize_t most_blocks):
    """Return the fields of a decoded `#commit` in the order of CommitMessage, or None.

    `operation` makes one operation of an iterable of its four fields.
    """
    cdef dict fields, item
    cdef list found
    cdef object repo, rev, since, blocks, time, action, path, before
    cdef object commit, prev_data, cid, prev, seq
    cdef unsigned long long number
    if type(body) is not dict:
        return None
    fields = body
    seq, repo, rev = fields.get("seq"), fields.get("repo"), fields.get("rev")
    since, blocks, time = fields.get("since"), fields.get("blocks"), fields.get("time")
    if type(seq) is not int or not 0 <= seq <= 9_007_199_254_740_991:
        return None
    if type(repo) is not str or not _is_plc(repo, 0, len(repo)) or type(rev) is not str or not _read_tid(rev, &number):
        return None
    if since is not None and type(since) is not str or type(time) is not str:
        return None
    if type(blocks) is not bytes or size_of(blocks) > most_blocks:
        return None
    commit, prev_data = _as_cid(fields.get("commit")), _as_cid(fields.get("prevData"))
    if not commit or prev_data is False or type(fields.get("ops")) is not list:
        return None
    found = []
    paths = set()
    for each in <list>fields["ops"]:
        if type(each) is not dict:
            return None
        item = each
        action, path = item.get("action"), item.get("path")
        cid, prev = _as_cid(item.get("cid")), _as_cid(item.get("prev"))
        if type(path) is not str or cid is False or prev is False or type(action) is not str:
            return None
        if action != "create" and action != "update" and action != "delete":
            return None
        if (cid is None) != (action == "delete"):
            return None
        paths.add(path)
        found.append(operation((action, path, cid, prev)))
    if len(found) > most_ops or len(paths) != len(found):
        return None
    return (
        seq, repo, rev, since, commit, blocks, tuple(found), prev_data, time,
        fields.get("tooBig") is True, fields.get("rebase") is True,
    )


cdef object _as_cid(value):
    """Return a CID, None for none, False for what is neither."""
    if value is None:
        return None
    if type(value) is not bytes or size_of(value) != CID_LENGTH or not _is_cid(value, 0):
        return False
    return Cid(value)


# --- identifiers and datetimes --------------------------------------------------------------------------------


def tid_value(str text not None):
    """Return the number of a TID, None if it is none."""
    cdef unsigned long long number
    return number if _read_tid(text, &number) else None


cdef bint _read_tid(str text, unsigned long long *value) except -1:
    cdef unsigned long long number = 0
    cdef Py_ssize_t index
    cdef Py_UCS4 c
    if len(text) != 13 or text[0] > c"j":
        return False
    for index in range(13):
        c = text[index]
        if c"2" <= c <= c"7":
            number = (number << 5) | (<unsigned int>c - 50)
        elif c"a" <= c <= c"z":
            number = (number << 5) | (<unsigned int>c - 91)
        else:
            return False
    value[0] = number
    return True


cdef inline bint _is_base32(Py_UCS4 c):
    return c"a" <= c <= c"z" or c"2" <= c <= c"7"


cdef bint _is_plc(str text, Py_ssize_t start, Py_ssize_t end) except -1:
    """Tell whether a DID of the method `plc` stands there, as nearly all are."""
    cdef Py_ssize_t index
    if end - start != 32 or len(text) < end:
        return False
    for index in range(8):
        if text[start + index] != <Py_UCS4>_PLC[index]:
            return False
    for index in range(start + 8, end):
        if not _is_base32(text[index]):
            return False
    return True


def is_plc(str text not None):
    """Tell whether a text is a DID of the method `plc`."""
    return _is_plc(text, 0, len(text))


cdef bint _is_rkey(str text, Py_ssize_t start, Py_ssize_t end) except -1:
    cdef Py_ssize_t index
    cdef Py_UCS4 c
    if not start < end <= start + 512:
        return False
    for index in range(start, end):
        c = text[index]
        if c > 127 or c == c"/" or not _is_key_letter(<unsigned char>c):
            return False
    return text[start] != c"." or end - start > 2


def is_usual_rkey(str text not None):
    """Tell whether a text is a record key; those that begin with dots are left to Python."""
    return _is_rkey(text, 0, len(text))


def is_usual_uri(str text not None):
    """Tell whether a text is the AT URI of a record of a `plc` account, its collection of letters."""
    cdef Py_ssize_t index, size = len(text), dots = 0, start = 38
    cdef Py_UCS4 c, before = c"."
    if size < 48 or size > 600 or text[4] != c"/" or text[37] != c"/":
        return False
    if not text.startswith("at://") or not _is_plc(text, 5, 37):
        return False
    for index in range(start, size):
        c = text[index]
        if c == c"/":
            return (
                dots >= 2 and before != c"." and index - start <= 63
                and _is_rkey(text, index + 1, size)
            )
        if c == c".":
            if before == c".":
                return False
            dots += 1
        elif not (c"a" <= c <= c"z" or c"A" <= c <= c"Z"):
            return False
        before = c
    return False


def is_usual_datetime(str text not None):
    """Tell whether a text is `YYYY-MM-DDTHH:MM:SS.sssZ`, on a day that every month has."""
    cdef Py_ssize_t index
    cdef Py_UCS4 c, sign
    cdef int month, day, hour
    if len(text) != 24:
        return False
    for index in range(24):
        c = text[index]
        sign = <Py_UCS4>_DATETIME[index]
        if c != sign and (sign != c"0" or c < c"0" or c > c"9"):
            return False
    month = _two(text, 5)
    day = _two(text, 8)
    hour = _two(text, 11)
    return 1 <= month <= 12 and 1 <= day <= 28 and hour <= 23 and text[14] < c"6" and text[17] < c"6"


cdef int _two(str text, Py_ssize_t at) except -1:
    return (<int>text[at] - 48) * 10 + <int>text[at + 1] - 48


def is_usual_cid(str text not None):
    """Tell whether a text may be a CID of this protocol: `b` and 58 letters of base32."""
    cdef Py_ssize_t index
    if len(text) != 59 or text[0] != c"b":
        return False
    for index in range(1, 59):
        if not _is_base32(text[index]):
            return False
    return True


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
