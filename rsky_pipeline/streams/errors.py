"""What callers can do something about when Redis does not do what it was asked."""

from rsky_pipeline.runtime.errors import Unavailable


class StoreUnavailable(Unavailable):
    """Redis did not answer, is loading, or the connection broke: the outcome is unknown.

    Try again after a pause, on a new connection.
    """


class StoreRejected(Exception):
    """Redis answered and refused, for instance because its memory is full."""
