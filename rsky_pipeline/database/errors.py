"""What can go wrong with PostgreSQL, sorted by what the caller has to do about it.

Every public function of this package raises only these (and ValueError for misuse).
"""

import psycopg

from rsky_pipeline.runtime.errors import Unavailable

_MAX_MESSAGE = 500  # characters; a message may quote data of any size


class DatabaseError(Exception):
    """A refusal that retrying does not cure: a defect of ours, or a missing privilege."""

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class DatabaseUnavailable(DatabaseError, Unavailable):
    """The server is gone, starting, stopping, full or read-only: connect again, with back-off.

    If it happened during a commit, nobody knows whether the commit took place.
    """


class TransactionConflict(DatabaseError):
    """Deadlock, serialization failure, lock or statement timeout: roll back, run it again."""


class BadData(DatabaseError):
    """A value that the database cannot store: the batch holds a poison row."""


class RowExists(BadData):
    """A unique index has the key of a new row already."""


class SchemaMismatch(DatabaseError):
    """A table, column or extension is missing or different: `rsky-pipeline db check` says which."""


# By the first two characters of SQLSTATE (PostgreSQL manual, appendix A).
_BY_CLASS: dict[str, type[DatabaseError]] = {
    "08": DatabaseUnavailable,  # connection exception
    "22": BadData,  # data exception
    "23": BadData,  # constraint violation
    "40": TransactionConflict,  # transaction rollback
    "53": DatabaseUnavailable,  # insufficient resources: disk, memory, connections
    "54": BadData,  # program limit exceeded: a key too long for an index page
    "57": DatabaseUnavailable,  # operator intervention: shutdown, crash, start-up
    "58": DatabaseUnavailable,  # system error outside PostgreSQL: input, output
}
_BY_CODE: dict[str, type[DatabaseError]] = {
    "23505": RowExists,  # unique violation
    "25006": DatabaseUnavailable,  # read-only: a standby that was or becomes the primary
    "25P03": DatabaseUnavailable,  # idle_in_transaction_session_timeout closed the connection
    "25P04": TransactionConflict,  # transaction_timeout
    "3F000": SchemaMismatch,  # no such schema
    "42703": SchemaMismatch,  # no such column
    "42704": SchemaMismatch,  # no such operator class, type, ...
    "42P01": SchemaMismatch,  # no such table
    "42P10": SchemaMismatch,  # ON CONFLICT without a matching unique index
    "428C9": SchemaMismatch,  # a generated column was written
    "55P03": TransactionConflict,  # lock_timeout
    "57014": TransactionConflict,  # statement_timeout
    "57P04": DatabaseError,  # the database was dropped
}


def translate(
    error: psycopg.Error | UnicodeEncodeError, *, connected: bool = True
) -> DatabaseError:
    """Return the error of ours for one of psycopg's; `connected` is whether the connection lives.

    Text that is no valid Unicode (lone surrogates) fails in the client with UnicodeEncodeError.
    """
    if isinstance(error, UnicodeEncodeError):
        return BadData(f"a text is not valid Unicode: {error.reason}")
    code = error.sqlstate
    message = (error.diag.message_primary or str(error) or type(error).__name__).strip()
    if len(message) > _MAX_MESSAGE:
        message = message[:_MAX_MESSAGE] + "..."
    if code is not None:
        kind = _BY_CODE.get(code) or _BY_CLASS.get(code[:2], DatabaseError)
        if kind is DatabaseError and not connected:
            kind = DatabaseUnavailable
        return kind(f"{message} (SQLSTATE {code})", sqlstate=code)
    if isinstance(error, psycopg.DataError):
        return BadData(message)
    if isinstance(error, psycopg.OperationalError) or not connected:
        return DatabaseUnavailable(" ".join(message.split()))
    return DatabaseError(message)
