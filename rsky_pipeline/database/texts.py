"""Texts on their way to PostgreSQL: made storable, and packed into its binary forms.

The library makes a call for each text of an array or row. `native` makes the same bytes in a tenth
of the time where it could be built; every other kind of array and row is left to the library.
"""

from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, Any

from psycopg.types.array import ListBinaryDumper

try:
    from rsky_pipeline.database.native import pack_rows, pack_texts
except ImportError:  # for want of a C compiler
    if not TYPE_CHECKING:

        def pack_texts(_: object) -> None:
            """Accept nothing."""

        pack_rows = pack_texts

# An index entry of a B-tree has at most 2,704 bytes, which may have to hold two texts.
MOST_BYTES = 1_000
TEXT_OID = 25
_HEAD = Struct("!iiIii")  # dimensions, whether there are nulls, element type, length, lower bound
_NULL = b"\xff\xff\xff\xff"
# https://www.postgresql.org/docs/current/sql-copy.html (Binary Format)
_COPY_START = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"


def storable(text: str, most_bytes: int = MOST_BYTES) -> str:
    """Return a stranger's text as PostgreSQL can hold and index it.

    NUL and lone surrogates have no place in it, and an index entry is bounded. For what describes
    (errors, hosts, reasons); a text that names something else when it is changed must be refused.
    """
    if text.isascii() and "\0" not in text and len(text) <= most_bytes:
        return text
    encoded = text.replace("\0", "\ufffd").encode("utf-8", "replace")
    return encoded[:most_bytes].decode("utf-8", "ignore")


class TextArrayDumper(ListBinaryDumper):
    """Dumps lists."""

    def dump(self, obj: list[Any]) -> Any:
        """Return the wire form of an array."""
        if self.sub_dumper is None or self.sub_dumper.oid != TEXT_OID or not obj:
            return super().dump(obj)
        encoded = text_array(obj)
        return super().dump(obj) if encoded is None else encoded


def text_array(items: Sequence[Any]) -> bytes | None:
    """Return the binary form of an array of texts and nulls; None if it holds anything else.

    Raises UnicodeEncodeError for a text that has no UTF-8 form.
    """
    packed = pack_texts(items)
    return _array(items) if packed is None else packed


def copied_rows(rows: Sequence[Sequence[Any]]) -> bytes | None:
    """Return all that `COPY ... (FORMAT BINARY)` reads; None if not all values are texts or nulls.

    Raises UnicodeEncodeError for a text that has no UTF-8 form.
    """
    packed = pack_rows(rows)
    return None if packed is None else _COPY_START + packed + _COPY_END


def _array(items: Sequence[Any]) -> bytes | None:
    parts: list[bytes] = [b""]
    nulls = 0
    for item in items:
        if type(item) is str:
            data = item.encode()
            parts += (len(data).to_bytes(4, "big"), data)
        elif item is None:
            nulls = 1
            parts.append(_NULL)
        else:
            return None
    parts[0] = _HEAD.pack(1, nulls, TEXT_OID, len(items), 1)
    return b"".join(parts)
