"""Errors of PostgreSQL, classified by the caller's reaction: reconnect, retry, isolate, give up.

Every public function of this package raises only these (and ValueError for misuse).
"""

import re

import psycopg

from rsky_pipeline.runtime.errors import StoreError, UnavailableError

NO_PRIVILEGE = "42501"  # SQLSTATE
_MAX_MESSAGE = 500  # characters; a message may quote data of any size
_MAX_STATEMENT = 60  # characters: the verb and the table


class DatabaseError(StoreError):
    """An error of no other class: a missing privilege, or a defect of this program or the server.

    `statement` is the beginning of the rejected SQL, if known.
    """

    finding = "database_refuses"

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str | None = None,
        statement: str = "",
        finding: str = "",
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.statement = statement
        self.finding = finding or self.finding

    @property
    def follows_data(self) -> bool:
        """Whether the data of the statement may be the cause, so that other data could succeed.

        False for errors of the connection, the server or the schema: they hit every statement. All
        other classes count, even those that only a defect of ours explains, because the rows of a
        single account may trigger them.
        """
        if isinstance(
            self, DatabaseUnavailableError | TransactionConflictError | SchemaMismatchError
        ):
            return False
        return not (self.sqlstate or "").startswith(_NOT_OF_DATA)


class DatabaseUnavailableError(DatabaseError, UnavailableError):
    """The server is gone, starting, stopping, full or read-only: reconnect with back-off.

    If it is raised by a commit, the outcome of the commit is unknown.
    """

    finding = "database"


class LoginRefusedError(DatabaseUnavailableError):
    """The server answers, and refuses the role, its password, its address or the database; or the
    files of the login cannot be read.

    Running workers wait, since somebody may be changing a password; a start ends, with the reason.
    """

    finding = "database_denied"


class TransactionConflictError(DatabaseError):
    """Deadlock, serialization failure, lock or statement timeout: roll back and run it again."""

    finding = "database_conflicts"
    reconnect = False


class BadDataError(DatabaseError):
    """A value that PostgreSQL cannot store: one row of the batch has to be isolated."""

    reconnect = False
    retryable = False


class RowExistsError(BadDataError):
    """A row with the same unique key exists."""


class SchemaMismatchError(DatabaseError):
    """A table, column, index or extension is missing or different: `rsky-pipeline db check` says
    which. No data is at fault; wait until somebody has put the schema right, or is done with it."""

    finding = "schema"


# By the first two characters of SQLSTATE (PostgreSQL manual, appendix A).
_BY_CLASS: dict[str, type[DatabaseError]] = {
    "08": DatabaseUnavailableError,  # connection exception
    "22": BadDataError,  # data exception
    "23": BadDataError,  # constraint violation
    "40": TransactionConflictError,  # transaction rollback
    "53": DatabaseUnavailableError,  # insufficient resources: disk, memory, connections
    "54": BadDataError,  # program limit exceeded: a key too long for an index page
    "57": DatabaseUnavailableError,  # operator intervention: shutdown, crash, start-up
    "58": DatabaseUnavailableError,  # system error outside PostgreSQL: input, output
}
_BY_CODE: dict[str, type[DatabaseError]] = {
    "23505": RowExistsError,  # unique violation
    "25006": DatabaseUnavailableError,  # read-only: a standby that was or becomes the primary
    "25P03": DatabaseUnavailableError,  # idle_in_transaction_session_timeout closed the connection
    "25P04": TransactionConflictError,  # transaction_timeout
    "3F000": SchemaMismatchError,  # no such schema
    "42703": SchemaMismatchError,  # no such column
    "42704": SchemaMismatchError,  # no such operator class, type, ...
    "42P01": SchemaMismatchError,  # no such table
    "42P10": SchemaMismatchError,  # ON CONFLICT without a matching unique index
    "428C9": SchemaMismatchError,  # a generated column was written
    "55P03": TransactionConflictError,  # lock_timeout
    "57014": TransactionConflictError,  # statement_timeout
    "57P04": DatabaseError,  # the database was dropped
}
# The rule of health (`health/rules.py`), where it is not that of the class.
_FINDINGS = {
    "25006": "database_read_only",
    "42501": "database_denied",
    "53100": "database_disk",
    "53300": "database_connections",
    "55P03": "database_locked",
}
# A connection that is refused has no SQLSTATE, and a pooler's error has one of its own.
_FINDINGS_BY_TEXT = {
    "too many clients": "database_connections",
    "too many connections": "database_connections",
    "remaining connection slots": "database_connections",
    "no more connections allowed": "database_connections",
    "query_wait_timeout": "database_connections",
    "No space left on device": "database_disk",
    "session is read-only": "database_read_only",
    "server is in hot standby mode": "database_read_only",
    "permission denied": "database_denied",
}
# Of the session, the login or the database: prepared statements that a pooler mixed up, privileges.
_NOT_OF_DATA = ("25", "26", "28", "3D", NO_PRIVILEGE, "42P05", "57", "F0")
# What to do, where the server's message alone does not say it.
_POOLER = "a pooler mixes up its clients' prepared statements: see docs/stores.md"
_HINTS = {
    "25006": "a standby is behind database_url, or default_transaction_read_only is on",
    "26000": _POOLER,
    "42P05": _POOLER,
    "53300": "raise max_connections, or use a pooler",
}
_HINTS_BY_TEXT = {
    "statement pooling mode": "set pool_mode = transaction in the pooler",
    "unsupported startup parameter": "remove it from database_url: the pooler refuses it",
    "session is read-only": "a standby is behind database_url",
    "server is in hot standby mode": "a standby is behind database_url",
    "row-level security": "a policy hides rows: ALTER ROLE ... BYPASSRLS, or have the "
    "role own the tables, without FORCE ROW LEVEL SECURITY",
    "too many clients": _HINTS["53300"],
    "too many connections": "raise CONNECTION LIMIT of the role or database, or use a pooler",
    "remaining connection slots": _HINTS["53300"],
    "no more connections allowed": "raise max_client_conn of the pooler",
    "query_wait_timeout": "raise default_pool_size of the pooler",
}
# A refused login has no SQLSTATE in the client. Servers with other `lc_messages` than English are
# waited for like those that do not answer.
_LOGIN_REFUSED = {
    "password authentication failed": "check user and password of database_url; characters that "
    "mean something in a URL are percent-encoded there",
    "no password supplied": "database_url has no password",
    "no pg_hba.conf entry": "add one to the server's pg_hba.conf: docs/runbook.md, Install",
    "Peer authentication failed": "run this as the account of that role, or log in with a password",
    "Ident authentication failed": "log in with a password",
    "is not permitted to log in": "ALTER ROLE ... LOGIN",
    "root certificate file": "sslrootcert of database_url names the authority's certificate",
    "private key file": "sslkey of database_url names the key of sslcert",
}
_MISSING = re.compile(r'(?:role|database) ".*" does not exist')
_CREATE = "`rsky-pipeline db create` creates role and database"
# Somebody changed a table under a statement that this session had prepared. A new session plans
# anew; no data is at fault.
_STALE_PLAN = "cached plan must not change result type"


def translate(
    error: psycopg.Error | UnicodeEncodeError, *, connected: bool = True, statement: str = ""
) -> DatabaseError:
    """Map a psycopg error to one of this module; `connected` is whether the connection is open.

    `statement` is the failed SQL; its beginning is kept.

    Lone surrogates fail in the client with UnicodeEncodeError, which maps to BadDataError.
    """
    statement = " ".join(statement.split())[:_MAX_STATEMENT]
    if isinstance(error, UnicodeEncodeError):
        return BadDataError(f"a text is not valid Unicode: {error.reason}", statement=statement)
    code = error.sqlstate
    message = (error.diag.message_primary or str(error) or type(error).__name__).strip()
    if len(message) > _MAX_MESSAGE:
        message = message[:_MAX_MESSAGE] + "..."
    if code is not None:
        kind = _BY_CODE.get(code) or _BY_CLASS.get(code[:2], DatabaseError)
        if _STALE_PLAN in message:
            kind = SchemaMismatchError
        elif kind is DatabaseError and not connected:
            kind = DatabaseUnavailableError
        text = f"{message} (SQLSTATE {code}){_hint(message, code)}"
        finding = _FINDINGS.get(code) or _finding(message)
        return kind(text, sqlstate=code, statement=statement, finding=finding)
    if isinstance(error, psycopg.DataError):
        return BadDataError(message, statement=statement)
    if isinstance(error, psycopg.OperationalError) or not connected:
        text = " ".join(message.split()) + _hint(message)
        if refused := _refused_login(message):
            return LoginRefusedError(f"{text}; {refused}")
        return DatabaseUnavailableError(text, finding=_finding(message))
    return DatabaseError(message, statement=statement)


def _refused_login(message: str) -> str:
    """Return what to do about a login that was refused; empty if it was not.

    Where several hosts were tried, another one may take it later.
    """
    if "Multiple connection attempts" in message:
        return ""
    if _MISSING.search(message):
        return _CREATE
    return next((hint for text, hint in _LOGIN_REFUSED.items() if text in message), "")


def _hint(message: str, code: str = "") -> str:
    by_text = (hint for text, hint in _HINTS_BY_TEXT.items() if text in message)
    hint = _HINTS.get(code) or next(by_text, None)
    return f"; {hint}" if hint else ""


def _finding(message: str) -> str:
    return next((name for text, name in _FINDINGS_BY_TEXT.items() if text in message), "")
