"""A PostgreSQL connection with the session settings that all of our SQL relies on.

Blocking, for one thread at a time. It never reconnects: after DatabaseUnavailableError the caller
closes it and opens another (`runtime.link` does both).
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.types.json import JsonbBinaryDumper

from rsky_pipeline.database.errors import DatabaseError, translate
from rsky_pipeline.database.texts import TextArrayDumper, copied_rows

_CONNECT_TIMEOUT_SECONDS = 10
_TCP_USER_TIMEOUT_MS = 30_000
_MAX_PREPARED = 1_000  # above the 130 statements of a batch; psycopg's default is 100
_IDLE_IN_TRANSACTION_TIMEOUT_MS = 120_000  # a hung client must not hold its row locks for ever
# The server keeps the plan of a prepared statement. A plan made while a table was small may be a
# sequential scan, and remains one when the table has grown, until the next ANALYZE.
_BY_KEY = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "random_page_cost": "1.1",
}
# Formats of values, whatever the defaults of the server, the database or the role.
# default_transaction_read_only is left alone: providers set it when a disk is full, and writes
# rejected for it are retried until they succeed.
_VALUES = {
    "timezone": "UTC",  # the AppView compares zone-less instants with now()
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
}
# Entries are acknowledged after the commit of their rows, so commits must be flushed to disk. Only
# "off" is changed: settings that also wait for a standby stay.
_DURABLE = (
    "CASE current_setting('synchronous_commit') WHEN 'off' "
    "THEN set_config('synchronous_commit', 'on', false) END"
)
_SCHEMA_NAME = re.compile(r"[A-Za-z_]{1,63}")  # as the official data plane demands

Row = tuple[Any, ...]


class Transaction:
    """Statements between BEGIN and COMMIT; only valid inside `Database.transaction()`.

    Afterwards every use raises ValueError.
    """

    def __init__(self, connection: psycopg.Connection[Row]) -> None:
        self._open: psycopg.Connection[Row] | None = connection

    def end(self) -> None:
        """Make further statements raise: they would run outside of any transaction."""
        self._open = None

    @property
    def _connection(self) -> psycopg.Connection[Row]:
        if self._open is None:
            raise ValueError("the transaction is over")
        return self._open

    def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run a statement and return the number of affected rows.

        Placeholders are `%s` (text) and `%b` (binary, for arrays). Without params none are
        interpreted, and the text may hold several statements.
        """
        with translated(self._connection, sql):
            return _execute(self._connection, sql, params).rowcount

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run a statement and return all of its rows."""
        with translated(self._connection, sql):
            return _execute(self._connection, sql, params).fetchall()

    def copy_in(self, sql: str, types: Sequence[str], rows: Iterable[Row]) -> int:
        """Run `COPY ... FROM STDIN (FORMAT BINARY)`; return the number of rows sent.

        `types` are the SQL types of the columns; jsonb takes encoded JSON.
        """
        held = list(rows)
        with (
            translated(self._connection, sql),
            self._connection.cursor() as cursor,
            cursor.copy(sql) as copy,
        ):
            packed = copied_rows(held) if set(types) == {"text"} else None
            if packed is not None:
                copy.write(packed)
                return len(held)
            copy.set_types(types)
            for row in held:
                copy.write_row(row)
        return len(held)


class Database:
    """One open connection; `schema` holds the AppView's tables."""

    def __init__(self, connection: psycopg.Connection[Row], schema: str) -> None:
        self._connection = connection
        self.schema = schema

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        schema: str = "bsky",
        name: str,
        statement_timeout_ms: int = 60_000,
        lock_timeout_ms: int = 15_000,
        by_key: bool = False,
    ) -> Self:
        """Open a connection; pg_stat_activity shows it as `rsky-pipeline NAME`; timeout 0 is none.

        `by_key` disables plans that read whole tables, for statements that find rows by key.
        Raises DatabaseUnavailableError if the server is unreachable or rejects the connection.
        """
        settings = {
            "search_path": f"{quote_schema(schema)}, public",
            "client_min_messages": "warning",
            **_VALUES,
            "statement_timeout": str(statement_timeout_ms),
            "lock_timeout": str(lock_timeout_ms),
            "idle_in_transaction_session_timeout": str(_IDLE_IN_TRANSACTION_TIMEOUT_MS),
            **(_BY_KEY if by_key else {}),
        }
        try:
            connection = psycopg.connect(_connection_string(url, name), autocommit=True)
        except psycopg.Error as error:
            raise translate(error, connected=False) from error
        connection.prepared_max = _MAX_PREPARED
        connection.adapters.register_dumper(None, _JsonTextDumper)
        connection.adapters.register_dumper(list, TextArrayDumper)
        try:
            with translated(connection):
                calls = ", ".join(["set_config(%s, %s, false)"] * len(settings))
                values = [text for pair in settings.items() for text in pair]
                _execute(connection, f"SELECT {calls}, {_DURABLE}", values)
        except BaseException:
            connection.close()
            raise
        return cls(connection, schema)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Commit when the block ends, roll back when it raises.

        Roll back only in rare cases: psycopg then discards all prepared statements, which the next
        batch has to prepare again. Raises ValueError in a nested use: leaving the inner block would
        not commit.
        """
        if self._connection.info.transaction_status == TransactionStatus.INTRANS:
            raise ValueError("a transaction is open already")
        transaction = Transaction(self._connection)
        with translated(self._connection), self._connection.transaction():
            try:
                yield transaction
            finally:
                transaction.end()

    def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run one statement in a transaction of its own; see `Transaction.execute`."""
        return Transaction(self._connection).execute(sql, params)

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run one query in a transaction of its own and return all of its rows."""
        return Transaction(self._connection).query(sql, params)

    def close(self) -> None:
        """Close; an open transaction is rolled back by the server. Never raises."""
        with contextlib.suppress(psycopg.Error):
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _JsonTextDumper(JsonbBinaryDumper):
    """Lets COPY accept encoded JSON, as `%s` and arrays do."""

    def dump(self, obj: object) -> bytes:
        """Return the wire form: a version byte, then the text."""
        if not isinstance(obj, str):
            raise TypeError(f"a jsonb column takes JSON as str, not {type(obj).__name__}")
        return b"\x01" + obj.encode()


def quote_schema(name: str) -> str:
    """Return a schema name quoted; ValueError if it has anything but letters and underscores."""
    if not _SCHEMA_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no schema name: letters and underscores only")
    return f'"{name}"'


@contextlib.contextmanager
def translated(connection: psycopg.Connection[Any], statement: str = "") -> Iterator[None]:
    """Raise our errors in place of psycopg's; `statement` is the SQL that may fail."""
    try:
        yield
    except (psycopg.Error, UnicodeEncodeError) as error:
        raise translate(error, connected=not connection.closed, statement=statement) from error


def _connection_string(url: str, name: str) -> str:
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        # libpq quotes the URL with its password, so neither its message nor the cause is shown.
        raise DatabaseError("database_url is not a PostgreSQL URL (postgresql://...)") from None
    parts.setdefault("connect_timeout", _CONNECT_TIMEOUT_SECONDS)
    # Keepalives detect a dead peer within about a minute while a reply is awaited. None are sent
    # while data is unacknowledged; there TCP_USER_TIMEOUT detects it in half of that.
    parts.setdefault("tcp_user_timeout", _TCP_USER_TIMEOUT_MS)
    parts.setdefault("keepalives_idle", 20)
    parts.setdefault("keepalives_interval", 10)
    parts.setdefault("keepalives_count", 3)
    parts.update(application_name=f"rsky-pipeline {name}"[:63], client_encoding="UTF8")
    return make_conninfo("", **parts)


def _execute(
    connection: psycopg.Connection[Row], sql: str, params: Sequence[Any]
) -> psycopg.Cursor[Row]:
    return connection.execute(sql, params or None)
