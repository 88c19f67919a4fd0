"""Texts for PostgreSQL: made storable, and encoded as binary arrays and COPY rows.

psycopg makes a call per text of an array or row. The compiled `native` module, if built, produces
the same bytes in a thirtieth of the time, and leaves arrays and rows of other types to psycopg.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from psycopg.types.array import ListBinaryDumper

from rsky_pipeline.atproto import compiled

try:
    if compiled.STALE:
        raise ImportError("the compiled module is older than its source")
    from rsky_pipeline.database.native import pack_array, pack_rows, pack_texts
except ImportError:  # for want of a C compiler, or of `make` after a change
    if not TYPE_CHECKING:
        pack_array = pack_rows = pack_texts = lambda _: None

__all__ = ["MOST_BYTES", "TEXT_OID", "TextArrayDumper", "copied_rows", "pack_array", "storable"]
# A B-tree index entry has at most 2,704 bytes, and may hold two texts.
MOST_BYTES = 1_000
TEXT_OID = 25
# https://www.postgresql.org/docs/current/sql-copy.html (Binary Format)
_COPY_START = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"


def storable(text: str, most_bytes: int = MOST_BYTES) -> str:
    """Return an untrusted text without NUL and lone surrogates, truncated to an indexable length.

    For descriptions only (errors, hosts, reasons). Reject an identifier instead: a changed one
    would name something else.
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
        packed = pack_texts(obj)
        return super().dump(obj) if packed is None else packed


def copied_rows(rows: Sequence[Sequence[Any]]) -> bytes | None:
    """Return rows as the input of `COPY ... (FORMAT BINARY)`; None if a value is no text or null.

    Raises UnicodeEncodeError for lone surrogates.
    """
    packed = pack_rows(rows)
    return None if packed is None else _COPY_START + packed + _COPY_END
