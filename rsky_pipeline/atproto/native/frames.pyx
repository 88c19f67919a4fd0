# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
"""Commits of the firehose, and the identifiers and datetimes in them and in records."""

from rsky_pipeline.atproto.native.common cimport (
    CID_LENGTH, cut, end_of_collection, follows, is_key, is_link, read_number, set_rules, size_of,
)

from rsky_pipeline.atproto import rules
from rsky_pipeline.atproto.cid import Cid

set_rules(rules.KEY_LETTERS, rules.MAX_RKEY)
cdef Py_ssize_t MAX_OPS = rules.MAX_OPS
cdef Py_ssize_t MAX_COMMIT_BLOCKS = rules.MAX_COMMIT_BLOCKS
cdef bytes _COMMIT = b"\xa2atg#commitbop\x01"  # the header of a frame
cdef bytes _PLC = b"did:plc:"
cdef bytes _DATETIME = b"0000-00-00T00:00:00.000Z"


def read_commit(raw, operation):
    """Return the fields of the `#commit` in a frame in the order of CommitMessage, or None.

    `operation` makes one operation of an iterable of its four fields.
    """
    try:
        return _commit(raw, operation) if type(raw) is bytes else None
    except (IndexError, UnicodeDecodeError):
        return None


cdef tuple _commit(bytes raw, operation):
    cdef Py_ssize_t at = size_of(_COMMIT), left, size, before = 0, before_size = 0
    cdef long long number = -1
    cdef unsigned long long rev_number
    cdef str repo = None, rev = None, since = None, time = None
    cdef bytes blocks = None
    cdef tuple ops = None
    cdef object commit = None, prev_data = None
    cdef bint too_big = False, rebase = False
    if not raw.startswith(_COMMIT):
        return None
    left = read_number(raw, &at, 0xA0)
    while left > 0:
        left -= 1
        size = read_number(raw, &at, 0x60)
        if not follows(raw, before, before_size, at, size):
            return None
        before, before_size = at, size
        at += size
        if _is_at(raw, before, size, b"ops"):
            ops = _operations(raw, &at, operation)
            if ops is None:
                return None
        elif _is_at(raw, before, size, b"rev"):
            rev = _text(raw, &at)
        elif _is_at(raw, before, size, b"seq"):
            number = read_number(raw, &at, 0)
        elif _is_at(raw, before, size, b"prev"):  # of the time before Sync 1.1
            if _link(raw, &at) is False:
                return None
        elif _is_at(raw, before, size, b"repo"):
            repo = _text(raw, &at)
        elif _is_at(raw, before, size, b"time"):
            time = _text(raw, &at)
        elif _is_at(raw, before, size, b"blobs"):  # is always empty
            if raw[at] != 0x80:
                return None
            at += 1
        elif _is_at(raw, before, size, b"since"):
            if raw[at] == 0xF6:
                at += 1
                continue
            since = _text(raw, &at)
            if since is None:
                return None
        elif _is_at(raw, before, size, b"blocks"):
            size = read_number(raw, &at, 0x40)
            if size < 0 or size > MAX_COMMIT_BLOCKS:
                return None
            blocks = cut(raw, at, at + size)
            at += size
        elif _is_at(raw, before, size, b"commit"):
            commit = _link(raw, &at)
        elif _is_at(raw, before, size, b"prevData"):
            prev_data = _link(raw, &at)
            if prev_data is False:
                return None
        else:
            if raw[at] != 0xF4 and raw[at] != 0xF5:
                return None
            if _is_at(raw, before, size, b"tooBig"):
                too_big = raw[at] == 0xF5
            elif _is_at(raw, before, size, b"rebase"):
                rebase = raw[at] == 0xF5
            else:
                return None
            at += 1
    if at != size_of(raw) or number < 0:
        return None
    if repo is None or rev is None or time is None or blocks is None or ops is None or not commit:
        return None
    if not _is_plc(repo, 0, len(repo)) or not _read_tid(rev, &rev_number):
        return None
    return number, repo, rev, since, commit, blocks, ops, prev_data, time, too_big, rebase


cdef tuple _operations(bytes raw, Py_ssize_t *at, operation):
    """Read operations whose paths are different, or return None."""
    cdef Py_ssize_t count = read_number(raw, at, 0x80), left, size, before, before_size
    cdef str path, text, action
    cdef object cid, prev
    cdef list found = []
    cdef set paths = set()
    if count < 0 or count > MAX_OPS:
        return None
    for _ in range(count):
        left = read_number(raw, at, 0xA0)
        before = before_size = 0
        path = action = None
        cid = prev = None
        while left > 0:
            left -= 1
            size = read_number(raw, at, 0x60)
            if not follows(raw, before, before_size, at[0], size):
                return None
            before, before_size = at[0], size
            at[0] += size
            if _is_at(raw, before, size, b"cid"):
                cid = _link(raw, at)
            elif _is_at(raw, before, size, b"path"):
                path = _text(raw, at)
            elif _is_at(raw, before, size, b"prev"):
                prev = _link(raw, at)
            elif _is_at(raw, before, size, b"action"):
                text = _text(raw, at)
                if text == "create":
                    action = "create"
                elif text == "update":
                    action = "update"
                elif text == "delete":
                    action = "delete"
            else:
                return None
        if path is None or action is None or cid is False or prev is False:
            return None
        if (cid is None) != (action == "delete"):
            return None
        paths.add(path)
        found.append(operation((action, path, cid, prev)))
    return tuple(found) if len(paths) == count else None


cdef bint _is_at(bytes raw, Py_ssize_t at, Py_ssize_t size, bytes key) except -1:
    cdef Py_ssize_t index
    if size != size_of(key):
        return False
    for index in range(size):
        if raw[at + index] != key[index]:
            return False
    return True


cdef str _text(bytes raw, Py_ssize_t *at):
    """Read a text, or return None for another kind of item."""
    cdef Py_ssize_t size = read_number(raw, at, 0x60), start = at[0]
    if size < 0:
        return None
    if size > size_of(raw) - start:
        raise IndexError
    at[0] = start + size
    return raw[start : start + size].decode("utf-8")


cdef object _link(bytes raw, Py_ssize_t *at):
    """Read a link: a CID, None for null, False for another kind of item."""
    if raw[at[0]] == 0xF6:
        at[0] += 1
        return None
    if not is_link(raw, at[0]):
        return False
    at[0] += 5 + CID_LENGTH
    return Cid(cut(raw, at[0] - CID_LENGTH, at[0]))


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
    """Return whether a DID of the method `plc` stands there, as nearly all are."""
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
    """Return whether a text is a DID of the method `plc`."""
    return _is_plc(text, 0, len(text))


def is_usual_rkey(str text not None):
    """Return whether a text is a record key; those that begin with dots are left to Python."""
    return is_key(text, 0, len(text))


def is_usual_uri(str text not None):
    """Return whether a text is the AT URI of a record of a `plc` account, in a usual collection."""
    cdef Py_ssize_t size = len(text), slash
    if size < 48 or size > 600 or text[4] != c"/" or text[37] != c"/":
        return False
    if not text.startswith("at://") or not _is_plc(text, 5, 37):
        return False
    slash = end_of_collection(text, 38)
    return slash > 0 and is_key(text, slash + 1, size)


def is_usual_datetime(str text not None):
    """Return whether a text is `YYYY-MM-DDTHH:MM:SS.sssZ`, of a day that its month has."""
    cdef Py_ssize_t index
    cdef Py_UCS4 c, sign
    cdef int month, day, hour, last
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
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour <= 23):
        return False
    if day > 28:
        last = 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31
        if month == 2:
            last = 29 if _is_leap_year(_two(text, 0), _two(text, 2)) else 28
        if day > last:
            return False
    return text[14] < c"6" and text[17] < c"6"


cdef bint _is_leap_year(int century, int year):
    """Return whether a year of the proleptic Gregorian calendar has a 29th of February."""
    return century % 4 == 0 if year == 0 else year % 4 == 0


cdef int _two(str text, Py_ssize_t at) except -1:
    return (<int>text[at] - 48) * 10 + <int>text[at + 1] - 48


def is_usual_cid(str text not None):
    """Return whether a text is a CID of this protocol: version 1 in base32, of SHA-256, whatever its
    codec of the two. The 36 bytes leave two bits of the last letter over, which are 0."""
    cdef Py_ssize_t index
    if len(text) != 59 or not (text.startswith("bafyrei") or text.startswith("bafkrei")):
        return False
    for index in range(7, 59):
        if not _is_base32(text[index]):
            return False
    return c"a" <= text[7] <= c"h" and text[58] in "aeimquy4"
