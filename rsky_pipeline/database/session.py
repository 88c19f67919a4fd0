"""The settings that our SQL relies on, and whether a server session may keep them.

A pooler in transaction mode (pgbouncer, Supavisor, RDS Proxy, Odyssey) runs each transaction of a
connection in any of its server sessions, and lends the same sessions to strangers. A setting or a
prepared statement of ours would be missing in our next transaction, and present in theirs. So
nothing is kept in a session before it is proved to belong to the connection (`is_own_session`);
elsewhere every transaction begins with SET LOCAL (`beginning`), which ends with it.
"""

import secrets
import time
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.pq import ExecStatus

_IDLE_IN_TRANSACTION_TIMEOUT_MS = 120_000  # a hung client must not hold its row locks for ever
# The server keeps the plan of a prepared statement. A plan made while a table was small may be a
# sequential scan, and remains one when the table has grown, until the next ANALYZE.
_BY_KEY = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "random_page_cost": "1.1",
    # With these there is one plan for any parameters, and to make it each time takes the server
    # longer than to write a few rows.
    "plan_cache_mode": "force_generic_plan",
    # A statement that has to read a table whole counts as so expensive without the plans above that
    # the server compiles it: 34 ms instead of 0.3 ms for a table of 100 rows.
    "jit": "off",
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
    "quote_all_identifiers": "off",  # definitions are compared as text
    # A row that a policy hides from us would be neither updated nor deleted, without an error.
    "row_security": "off",
    "client_encoding": "UTF8",
}
_DEFAULTS_OF_TRANSACTIONS = {
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
}
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED NOT DEFERRABLE"
_LISTS = frozenset({"search_path"})  # SET takes their values as identifiers, not as a text
_MARK = "rsky_pipeline.session"  # a name of ours, which no other program reads

# The age in whole milliseconds: how a float is written depends on a setting.
_LOOK = """
SELECT pg_backend_pid(), floor(extract(epoch FROM clock_timestamp() - backend_start) * 1000)::int8
FROM pg_stat_get_activity(pg_backend_pid())"""

Connection = psycopg.Connection[Any]


def session_settings(
    search_path: str, *, statement_timeout_ms: int, lock_timeout_ms: int, by_key: bool
) -> dict[str, str]:
    """Return the settings of every transaction, except for the durability of its commit."""
    return {
        "search_path": search_path,
        "client_min_messages": "warning",
        **_VALUES,
        "statement_timeout": str(statement_timeout_ms),
        "lock_timeout": str(lock_timeout_ms),
        "idle_in_transaction_session_timeout": str(_IDLE_IN_TRANSACTION_TIMEOUT_MS),
        **(_BY_KEY if by_key else {}),
    }


def is_own_session(connection: Connection, began: float) -> bool:
    """Return whether a new connection has a server session to itself.

    `began` is the monotonic time before it was opened. A pooler is recognised without leaving a
    trace in its sessions: it announces another process id than that of the backend, which moreover
    is older than the connection. Only then is a value set, and looked for in the next transaction:
    it would be missing if transactions were spread over several sessions.
    """
    pid, age_ms = _row(connection, _LOOK)
    if pid != connection.info.backend_pid:
        return False
    if age_ms is not None and age_ms > (time.monotonic() - began) * 1_000:
        return False
    mark = secrets.token_hex(8)
    _row(connection, "SELECT set_config(%s, %s, false)", _MARK, mark)
    look = "SELECT pg_backend_pid(), current_setting(%s, true)"
    return _row(connection, look, _MARK) == (pid, mark)


def keep(connection: Connection, settings: Mapping[str, str]) -> None:
    """Set the session's settings; only for one that belongs to the connection."""
    values = {**settings, **_DEFAULTS_OF_TRANSACTIONS, "synchronous_commit": _durable(connection)}
    calls = ", ".join(["set_config(%s, %s, false)"] * len(values))
    _row(connection, f"SELECT {calls}", *(text for pair in values.items() for text in pair))


def beginning(connection: Connection, settings: Mapping[str, str]) -> str:
    """Return the statements that begin a transaction in a session of a pooler.

    All settings are among them, those of the server's defaults too: another client may have changed
    them in the session, for example `synchronous_commit`.
    """
    values = {**settings, "synchronous_commit": _durable(connection)}
    return "; ".join([
        _BEGIN,
        *(
            f"SET LOCAL {name} TO {value if name in _LISTS else _literal(value)}"
            for name, value in values.items()
        ),
    ])  # fmt: skip


def keeps_statements(connection: Connection) -> bool:
    """Return whether a pooler keeps prepared statements apart, as pgbouncer >= 1.21 can.

    Such a pooler renames them, and prepares them in each session that needs them. Any other one
    passes them on as they are; the one that is made here is removed in the same transaction.
    """
    name = f"rsky_pipeline_{secrets.token_hex(8)}"
    with connection.transaction(force_rollback=True):
        if connection.pgconn.prepare(name.encode(), b"SELECT 1").status != ExecStatus.COMMAND_OK:
            return False
        seen = "SELECT count(*) FROM pg_prepared_statements WHERE name = %s"
        if _row(connection, seen, name) == (0,):
            return True
        connection.execute(f'DEALLOCATE "{name}"'.encode())
        return False


def _durable(connection: Connection) -> str:
    """Return the `synchronous_commit` to use.

    Entries are acknowledged after the commit of their rows, so commits must be flushed to disk.
    Only "off" is changed: settings that also wait for a standby stay.
    """
    (value,) = _row(connection, "SELECT current_setting('synchronous_commit')")
    return "on" if value == "off" else str(value)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _row(connection: Connection, sql: str, *values: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] = (
        connection.execute(sql.encode(), values or None, prepare=False).fetchone() or ()
    )
    return row
