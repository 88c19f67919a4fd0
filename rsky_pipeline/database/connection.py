"""A PostgreSQL connection with the session settings that all of our SQL relies on.

Blocking, for one thread at a time. It never reconnects: after DatabaseUnavailableError the caller
closes it and opens another (`runtime.link` does both). It may lead to a pooler in transaction mode;
`session.py` says what follows from that.
"""

import contextlib
import re
import select
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.types.json import JsonbBinaryDumper

from rsky_pipeline.configuration.store_urls import files_of
from rsky_pipeline.database import session
from rsky_pipeline.database.direct import DirectStatements
from rsky_pipeline.database.errors import DatabaseError, LoginRefusedError, translate
from rsky_pipeline.database.forms import TableForms, read_forms
from rsky_pipeline.database.patience import PatientConnection
from rsky_pipeline.database.texts import TextArrayDumper, copied_rows
from rsky_pipeline.runtime.errors import described

_CONNECT_TIMEOUT_SECONDS = 10
_TCP_USER_TIMEOUT_MS = 30_000
_MAX_PREPARED = 1_000  # above the 130 statements of a batch; psycopg's default is 100
_TEXTS = frozenset({"text", "varchar"})  # the same bytes in COPY
_BEGIN = "BEGIN"
_SECRETS = ("sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
_SCHEMA_NAME = re.compile(r"[A-Za-z_]{1,63}")  # as the official data plane demands

Row = tuple[Any, ...]


class Transaction:
    """Statements between BEGIN and COMMIT; only valid inside `Database.transaction()`.

    Afterwards every use raises ValueError.
    """

    def __init__(self, database: "Database", connection: psycopg.Connection[Row]) -> None:
        self._database = database
        self._open: psycopg.Connection[Row] | None = connection

    def end(self) -> None:
        """Make further statements raise: they would run outside of any transaction."""
        self._open = None

    @property
    def _connection(self) -> psycopg.Connection[Row]:
        if self._open is None:
            raise ValueError("the transaction is over")
        return self._open

    @property
    def forms(self) -> TableForms:
        """The forms of the AppView's tables, which are read once a connection."""
        if self._database.forms is None:
            self._database.forms = read_forms(self.query)
        return self._database.forms

    def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run a statement and return the number of affected rows.

        Placeholders are `%s` (text) and `%b` (binary, for arrays). Without params none are
        interpreted, and the text may hold several statements.
        """
        connection, direct = self._connection, self._database.direct
        with translated(connection, sql):
            if params and direct is not None and (result := direct.run(sql, params)) is not None:
                return result.command_tuples or 0
            return _execute(connection, sql, params).rowcount

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run a statement and return all of its rows."""
        connection, direct = self._connection, self._database.direct
        with translated(connection, sql):
            if params and direct is not None and (result := direct.run(sql, params)) is not None:
                return direct.rows(result)
            return _execute(connection, sql, params).fetchall()

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
            packed = copied_rows(held) if _TEXTS.issuperset(types) else None
            if packed is not None:
                copy.write(packed)
                return len(held)
            copy.set_types(types)
            for row in held:
                copy.write_row(row)
        return len(held)


class Database:
    """One open connection; `schema` holds the AppView's tables.

    `pooled` is whether its transactions may run in sessions that others use too.
    """

    def __init__(self, connection: PatientConnection, schema: str, beginning: str) -> None:
        """`beginning` is the SQL that begins a transaction, with the settings that it needs."""
        self._connection = connection
        self._beginning = beginning
        self.schema = schema
        self.pooled = beginning != _BEGIN
        self.forms: TableForms | None = None  # not yet read
        self.direct: DirectStatements | None = None  # every statement is run by a cursor

    @property
    def prepares(self) -> bool:
        """Whether statements that are repeated stay prepared."""
        return self._connection.prepare_threshold is not None

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

        `by_key` is for workers, whose statements find rows by key: it disables plans that read
        whole tables, and runs repeated statements past psycopg (see `direct`).
        Raises DatabaseUnavailableError if the server is unreachable or rejects the connection, and
        its LoginRefusedError for a certificate or key that cannot be read.
        """
        _check_files(url)
        settings = session.session_settings(
            search_path(schema),
            statement_timeout_ms=statement_timeout_ms,
            lock_timeout_ms=lock_timeout_ms,
            by_key=by_key,
        )
        began = time.monotonic()
        try:
            connection = PatientConnection.connect(_connection_string(url, name), autocommit=True)
        except psycopg.Error as error:
            raise translate(error, connected=False) from error
        connection.limit(statement_timeout_ms)
        connection.prepared_max = _MAX_PREPARED
        connection.adapters.register_dumper(None, _JsonTextDumper)
        connection.adapters.register_dumper(list, TextArrayDumper)
        try:
            with translated(connection):
                if session.is_own_session(connection, began):
                    session.keep(connection, settings)
                    database = cls(connection, schema, _BEGIN)
                    if by_key:
                        database.direct = DirectStatements(connection)
                    return database
                if not session.keeps_statements(connection):
                    connection.prepare_threshold = None
                return cls(connection, schema, session.beginning(connection, settings))
        except BaseException:
            connection.close()
            raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Commit when the block ends, roll back when it raises.

        Raises ValueError in a nested use: leaving the inner block would not commit.
        """
        if self._connection.info.transaction_status == TransactionStatus.INTRANS:
            raise ValueError("a transaction is open already")
        transaction = Transaction(self, self._connection)
        with translated(self._connection):
            self._command(self._beginning)
            try:
                yield transaction
            except BaseException:
                transaction.end()
                self._roll_back()
                raise
            transaction.end()
            # The server answers COMMIT of a failed transaction with ROLLBACK, and no error. Without
            # this an entry would be acknowledged whose rows are not there.
            if self._command("COMMIT") != "COMMIT":
                raise DatabaseError("the transaction was rolled back: a statement in it had failed")

    def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run one statement in a transaction of its own; see `Transaction.execute`."""
        with self._single() as transaction:
            return transaction.execute(sql, params)

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Run one query in a transaction of its own and return all of its rows."""
        with self._single() as transaction:
            return transaction.query(sql, params)

    def _single(self) -> contextlib.AbstractContextManager[Transaction]:
        """Return the context of a single statement; within a transaction it is a part of that."""
        is_idle = self._connection.info.transaction_status == TransactionStatus.IDLE
        if self.pooled and is_idle:
            return self.transaction()
        return contextlib.nullcontext(Transaction(self, self._connection))

    def _command(self, text: str) -> str | None:
        if self.direct is not None:
            return self.direct.command(text.encode()).decode()
        return self._connection.execute(text.encode(), prepare=False).statusmessage

    def _roll_back(self) -> None:
        """Roll back, or close the connection if that fails. Never raises.

        psycopg's own rollback would follow up with DEALLOCATE ALL: each next batch would plan its
        statements anew, and a pooler may pass it on to a session in which others have statements.
        """
        self.forms = None  # a table may have been changed under a statement
        status = self._connection.info.transaction_status
        with contextlib.suppress(psycopg.Error):
            if status == TransactionStatus.IDLE:
                return
            if status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                with self._connection.timed():
                    result = self._connection.pgconn.exec_(b"ROLLBACK")
                if result.status == ExecStatus.COMMAND_OK:
                    return
        self.close()

    @property
    def has_ended(self) -> bool:
        """Whether the server has closed the connection, or has said what nobody asked for.

        Of an idle connection the server closes (an idle timeout, a fail-over, a proxy) there is
        something to read, while no answer is awaited.
        """
        if self._connection.closed:
            return True
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))

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


def search_path(schema: str) -> str:
    """Return the search_path of all SQL. Raises ValueError for an invalid schema name."""
    # Ours is behind the AppView's, for a table that stands in (`schema.official`).
    return f"{quote_schema(schema)}, rsky_pipeline, public"


@dataclass(frozen=True, slots=True)
class Login:
    """A URL divided for a client program: its public parts, for arguments, and its secrets.

    `secrets` are those for which libpq has no variable.
    """

    text: str
    environment: Mapping[str, str] = field(repr=False)
    secrets: Mapping[str, str] = field(repr=False)


def login_of(url: str, *, options: str = "") -> Login:
    """Return how a client program is told to log in, with further options for the session.

    Raises DatabaseError for what is no URL.
    """
    parts = _parts(url)
    environment = {"PGPASSWORD": str(parts.pop("password"))} if "password" in parts else {}
    secrets = {name: str(parts.pop(name)) for name in _SECRETS if name in parts}
    if options:
        parts["options"] = f"{parts.get('options', '')} {options}".strip()
    return Login(make_conninfo("", **parts), environment, secrets)


def quote_schema(name: str) -> str:
    """Return a schema name quoted; ValueError if it has anything but letters and underscores."""
    if not _SCHEMA_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no schema name: letters and underscores only")
    return f'"{name}"'


@contextlib.contextmanager
def translated(connection: psycopg.Connection[Any], statement: str = "") -> Iterator[None]:
    """Raise our errors in place of psycopg's; `statement` is the SQL that may fail.

    With a statement, any other exception comes from the library as well, for example for a value in
    a form that it cannot read. It must not end a worker again and again.
    """
    try:
        yield
    except (psycopg.Error, UnicodeEncodeError) as error:
        raise translate(error, connected=not connection.closed, statement=statement) from error
    except (DatabaseError, MemoryError):
        raise
    except Exception as error:
        if not statement:
            raise
        raise DatabaseError(
            f"the client failed: {described(error)}", statement=statement
        ) from error


def _check_files(url: str) -> None:
    """Raise LoginRefusedError for a file that this account may not read.

    libpq says so after the same words as for a server that is away.
    """
    for path in files_of(url):
        try:
            with open(path, "rb"):
                pass
        except PermissionError as error:
            raise LoginRefusedError(f"{path} of database_url: {error.strerror}") from error
        except OSError:
            continue  # not all have to be there


def _connection_string(url: str, name: str) -> str:
    parts = _parts(url)
    # Keepalives detect a dead peer within about a minute while a reply is awaited. None are sent
    # while data is unacknowledged; there TCP_USER_TIMEOUT detects it in half of that.
    parts.setdefault("tcp_user_timeout", _TCP_USER_TIMEOUT_MS)
    parts.setdefault("keepalives_idle", 20)
    parts.setdefault("keepalives_interval", 10)
    parts.setdefault("keepalives_count", 3)
    parts.update(application_name=f"rsky-pipeline {name}"[:63], client_encoding="UTF8")
    return make_conninfo("", **parts)


def _parts(url: str) -> dict[str, Any]:
    """Return the options of libpq that a URL stands for, and those that it always needs."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        # libpq quotes the URL with its password, so neither its message nor the cause is shown.
        raise DatabaseError("database_url is not a PostgreSQL URL (postgresql://...)") from None
    parts.setdefault("connect_timeout", _CONNECT_TIMEOUT_SECONDS)
    if "," in f"{parts.get('host', '')}{parts.get('hostaddr', '')}":
        # After a fail-over the first of several hosts is a standby, which takes connections too.
        parts.setdefault("target_session_attrs", "read-write")
    return parts


def _execute(
    connection: psycopg.Connection[Row], sql: str, params: Sequence[Any]
) -> psycopg.Cursor[Row]:
    return connection.execute(sql, params or None)
