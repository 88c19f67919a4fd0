"""Statements that are repeated, past the cursors of psycopg.

A cursor converts the query anew each time and waits for the server in a generator, which takes the
client 80 us and the server 15 beside the statement itself; a call of libpq takes 10 and none. With
batches of few rows that is most of the cost of an event. A cursor still runs a statement for the
first time, and every one with parameters of other types than those below.

Only for connections with a session of their own, and for programs that nobody interrupts from a
keyboard: a call of libpq ends with the answer of the server, or with the socket (`patience`).
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from rsky_pipeline.database.patience import PatientConnection
from rsky_pipeline.database.texts import pack_array

_MAX_PREPARED = 1_000
_TEXT, _BINARY = 0, 1
_UNKNOWN, _INT2, _INT4, _INT8, _FLOAT8 = 0, 21, 23, 20, 701  # as psycopg declares them
_PLACEHOLDER = re.compile(r"%(.)")
_DONE = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)

_Key = tuple[str, tuple[int, ...]]  # the SQL, and the types of its parameters


class DirectStatements:
    """The prepared statements of one connection."""

    def __init__(self, connection: PatientConnection) -> None:
        self._connection = connection
        self._transformer = Transformer(connection)
        self._names: dict[_Key, bytes | None] = {}  # None: it has been run once, by a cursor
        self._prepared = 0

    def command(self, text: bytes) -> bytes:
        """Run a command without parameters; return the server's word for it."""
        return self._call(lambda: self._connection.pgconn.exec_(text)).command_status or b""

    def run(self, sql: str, params: Sequence[Any]) -> PGresult | None:
        """Run a statement; None if a cursor is to do it."""
        values: list[bytes] = []
        types: list[int] = []
        formats: list[int] = []
        for param in params:
            packed = pack_array(param) if type(param) is list else _packed(param)
            if packed is None:
                return None
            types.append(packed[0])
            values.append(packed[1])
            formats.append(_BINARY if type(param) is list else _TEXT)
        key = sql, tuple(types)
        name = self._names.get(key)
        if name is None:
            name = self._prepare(key, formats)
            if name is None:
                return None
        prepared = name
        return self._call(
            lambda: self._connection.pgconn.exec_prepared(prepared, values, formats, _TEXT)
        )

    def rows(self, result: PGresult) -> list[tuple[Any, ...]]:
        """Return the rows of a result."""
        self._transformer.set_pgresult(result)
        return self._transformer.load_rows(0, result.ntuples, tuple)

    def _prepare(self, key: _Key, formats: Sequence[int]) -> bytes | None:
        """Prepare a statement that comes a second time; None for another one."""
        sql, types = key
        if key not in self._names:
            if len(self._names) < _MAX_PREPARED:
                self._names[key] = None
            return None
        query, kinds = _numbered(sql)
        if kinds != ["b" if each == _BINARY else "s" for each in formats]:
            return None
        # A number of its own: the server cuts names to 63 bytes, so none is made longer.
        name = b"rsky_%d" % self._prepared
        self._prepared += 1
        self._call(lambda: self._connection.pgconn.prepare(name, query.encode(), types))
        self._names[key] = name
        return name

    def _call(self, action: Callable[[], PGresult]) -> PGresult:
        with self._connection.timed():
            result = action()
        if result.status not in _DONE:
            raise error_from_result(result)
        return result


def _packed(value: object) -> tuple[int, bytes] | None:
    """Return the type and the text of a single parameter; None if a cursor is to declare them."""
    kind = type(value)
    if kind is str:
        assert isinstance(value, str)
        encoded = value.encode()
        return None if b"\0" in encoded else (_UNKNOWN, encoded)
    if kind is int:
        assert isinstance(value, int)
        bits = value.bit_length()
        oid = _INT2 if bits < 16 else _INT4 if bits < 32 else _INT8
        return (oid, b"%d" % value) if bits < 64 else None
    if kind is float and math.isfinite(value):  # type: ignore[arg-type]
        return _FLOAT8, repr(value).encode()
    return None


def _numbered(sql: str) -> tuple[str, list[str]]:
    """Return SQL with `$1`, `$2` ... as its placeholders, and their letters."""
    kinds: list[str] = []

    def replaced(found: re.Match[str]) -> str:
        if found[1] == "%":
            return "%"
        kinds.append(found[1])
        return f"${len(kinds)}"

    return _PLACEHOLDER.sub(replaced, sql), kinds
