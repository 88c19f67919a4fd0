"""One PostgreSQL connection for one thread at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import psycopg
from psycopg import errors as pg
from psycopg import sql

from rsky_pipeline.database.errors import (
    BadData,
    DatabaseError,
    DatabaseUnavailable,
    SchemaMismatch,
    TransactionConflict,
)

Row = tuple[Any, ...]

_CONFLICTS = (
    pg.DeadlockDetected,
    pg.SerializationFailure,
    pg.LockNotAvailable,
    pg.QueryCanceled,
)
_MISSING = (pg.UndefinedTable, pg.UndefinedColumn, pg.InvalidSchemaName, pg.UndefinedObject)
_GONE = ("08", "57P", "53", "25P03")  # SQLSTATE prefixes: connection, shutdown, resources, timeout


class Transaction:
    """Statements of one transaction; parameters are positional, arrays best as `%b`."""

    def __init__(self, connection: psycopg.Connection[Row]) -> None:
        self._connection = connection

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        """Run a statement and return how many rows it affected."""
        cursor = self._connection.execute(statement, parameters or None)
        return cursor.rowcount

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run a statement and return its rows."""
        cursor = self._connection.execute(statement, parameters or None)
        return cursor.fetchall()

    def run_script(self, script: str) -> None:
        """Run several statements without parameters."""
        self._connection.execute(script)

    def use_schema(self, schema: str) -> None:
        """Look up names in a schema first, until the transaction ends."""
        self._connection.execute(
            sql.SQL("SET LOCAL search_path TO {}, public").format(sql.Identifier(schema))
        )

    def create_schema(self, schema: str) -> None:
        """Create a schema if it is not there."""
        name = sql.Identifier(schema)
        self._connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name))

    @property
    def raw(self) -> psycopg.Connection[Row]:
        """The client's connection, for this package only."""
        return self._connection


class Database:
    """A connection; when it is lost, make a new one with `connect`."""

    def __init__(self, connection: psycopg.Connection[Row]) -> None:
        self._connection = connection

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        schema: str = "bsky",
        name: str,
        statement_timeout_ms: int = 60_000,
        lock_timeout_ms: int = 15_000,
    ) -> Self:
        """Connect with the session settings that every part of the pipeline relies on.

        Raises DatabaseUnavailable, or DatabaseError for a URL or login that can never work.
        """
        with translated_errors():
            connection = psycopg.connect(
                url,
                autocommit=True,
                connect_timeout=10,
                application_name=f"rsky-pipeline {name}"[:63],
                client_encoding="UTF8",
            )
            settings = {
                "search_path": f'"{schema}", public',
                "TimeZone": "UTC",
                "statement_timeout": str(statement_timeout_ms),
                "lock_timeout": str(lock_timeout_ms),
                "idle_in_transaction_session_timeout": "60000",
            }
            for key, value in settings.items():
                connection.execute("SELECT set_config(%s, %s, false)", (key, value))
        return cls(connection)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Run a transaction: committed at the end of the block, rolled back on an exception."""
        with translated_errors(), self._connection.transaction():
            yield Transaction(self._connection)

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run one statement outside of a transaction and return its rows."""
        with translated_errors():
            return Transaction(self._connection).query(statement, parameters)

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        """Run one statement outside of a transaction and return how many rows it affected."""
        with translated_errors():
            return Transaction(self._connection).execute(statement, parameters)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the client's errors into this package's."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise BadData(f"a text cannot be encoded: {error}") from error
    except psycopg.Error as error:
        raise translate(error) from error


def translate(error: psycopg.Error) -> DatabaseError:
    """Return this package's error for one of the client's."""
    state = error.sqlstate or ""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, _CONFLICTS):
        return TransactionConflict(text)
    if isinstance(error, _MISSING):
        return SchemaMismatch(text)
    if state.startswith(_GONE):
        return DatabaseUnavailable(text)
    if isinstance(error, psycopg.DataError | psycopg.IntegrityError) or state[:2] in {"22", "23"}:
        return BadData(text)
    if state.startswith("54"):  # program limit exceeded, such as an index key that is too long
        return BadData(text)
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not state:
        return DatabaseUnavailable(text)
    return DatabaseError(text)
