"""Errors of Redis, classified by the caller's reaction: reconnect and retry, or give up."""

from rsky_pipeline.runtime.errors import StoreError, UnavailableError


class StoreUnavailableError(StoreError, UnavailableError):
    """Redis did not answer, cannot serve now, or is not the primary any more.

    Retry after a pause, on a new connection. The call may have taken effect.
    """

    finding = "redis"

    def __init__(self, message: str, finding: str = "") -> None:
        super().__init__(message)
        self.finding = finding or self.finding


class WritesRefusedError(StoreUnavailableError):
    """The server rejects all writes until an operator acts: its memory is full, it cannot persist,
    or it lacks replicas. The message names the cause."""


class StoreRejectedError(StoreError):
    """Redis rejected this command, for example because the user lacks a permission."""

    finding = "redis_refuses"

    def __init__(self, message: str, finding: str = "") -> None:
        super().__init__(message)
        self.finding = finding or self.finding


class LoginRejectedError(StoreRejectedError):
    """Redis rejected the user or password, or the files of the login cannot be read."""

    finding = "redis_denied"


def store_reason(error: StoreError) -> str:
    """Return the metric label of a failure of Redis: `store_unavailable` or `store_rejected`."""
    away = isinstance(error, StoreUnavailableError) and not isinstance(error, WritesRefusedError)
    return "store_unavailable" if away else "store_rejected"
