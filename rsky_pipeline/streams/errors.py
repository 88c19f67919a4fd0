"""Errors of Redis, sorted by what the caller has to do about them."""

from rsky_pipeline.runtime.errors import StoreError, UnavailableError


class StoreUnavailableError(StoreError, UnavailableError):
    """Redis did not answer or cannot serve now, or this is not the server that is wanted any more.

    Try again after a pause, on a new connection. The outcome of the call is unknown.
    """


class WritesRefusedError(StoreUnavailableError):
    """The server refuses all writes until an operator acts: its memory is full, it cannot persist,
    or it lacks replicas. The message says which."""


class StoreRejectedError(StoreError):
    """Redis refused this command, for example because the user lacks a permission."""


def store_reason(error: StoreError) -> str:
    """Return the metric label of a failure of Redis: `store_unavailable` or `store_rejected`."""
    away = isinstance(error, StoreUnavailableError) and not isinstance(error, WritesRefusedError)
    return "store_unavailable" if away else "store_rejected"
