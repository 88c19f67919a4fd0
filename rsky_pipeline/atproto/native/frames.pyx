# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
"""Commits of the firehose, and the identifiers and datetimes in them and in records."""

from rsky_pipeline.atproto.native.common cimport CID_LENGTH, is_cid, is_key_letter, size_of

from rsky_pipeline.atproto.cid import Cid

cdef bytes _PLC = b"did:plc:"
cdef bytes _DATETIME = b"0000-00-00T00:00:00.000Z"


def read_commit(body, operation, Py_ssize_t most_ops, Py_ssize_t most_blocks):
    """Return the fields of a decoded `#commit` in the order of CommitMessage, or None.

    `operation` makes one operation of an iterable of its four fields.
    """
    cdef dict fields, item
    cdef list found
    cdef object repo, rev, since, blocks, time, action, path
    cdef object commit, prev_data, cid, prev, seq
    cdef unsigned long long number
    if type(body) is not dict:
        return None
    fields = body
    seq, repo, rev = fields.get("seq"), fields.get("repo"), fields.get("rev")
    since, blocks, time = fields.get("since"), fields.get("blocks"), fields.get("time")
    if type(seq) is not int or not 0 <= seq <= 9_007_199_254_740_991:
        return None
    if type(repo) is not str or not _is_plc(repo, 0, len(repo)):
        return None
    if type(rev) is not str or not _read_tid(rev, &number):
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
    if type(value) is not bytes or size_of(value) != CID_LENGTH or not is_cid(value, 0):
        return False
    return Cid(value)


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
        if c > 127 or c == c"/" or not is_key_letter(<unsigned char>c):
            return False
    return text[start] != c"." or end - start > 2


def is_usual_rkey(str text not None):
    """Tell whether a text is a record key; those that begin with dots are left to Python."""
    return _is_rkey(text, 0, len(text))


def is_usual_uri(str text not None):
    """Tell whether a text is the AT URI of a record of a `plc` account, in a usual collection."""
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
    if not (1 <= month <= 12 and 1 <= day <= 28 and hour <= 23):
        return False
    return text[14] < c"6" and text[17] < c"6"


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
