"""What callers can do something about when Redis does not do what it was asked."""

from rsky_pipeline.runtime.errors import StoreError, UnavailableError


class StoreUnavailable(StoreError, UnavailableError):
    """Redis did not answer or cannot serve now, or this is not the server that is wanted any more.

    Try again after a pause, on a new connection. The outcome of the call is unknown.
    """


class StoreRejected(StoreError):
    """Redis refused a command for what it is, for example for want of a permission."""
