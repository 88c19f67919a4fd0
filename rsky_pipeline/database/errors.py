"""What callers can do something about when PostgreSQL does not do what it was asked."""


class DatabaseError(Exception):
    """PostgreSQL failed in a way that no more specific class here describes."""


class DatabaseUnavailable(DatabaseError):
    """The connection broke or cannot be made; whether a commit happened is unknown.

    Connect again after a pause, and repeat: everything that is written can be repeated.
    """


class TransactionConflict(DatabaseError):
    """Another transaction was in the way (deadlock, serialization, timeout): repeat at once."""


class BadData(DatabaseError):
    """A value cannot be stored; repeating the same transaction fails the same way."""


class SchemaMismatch(DatabaseError):
    """A table, column or index that is needed is not there; `db check` tells which."""
