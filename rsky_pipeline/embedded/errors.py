"""Errors of preparing an embedded store."""

from rsky_pipeline.runtime.errors import WorkerError


class EmbeddedStoreError(WorkerError):
    """An embedded store cannot be used; the message has the reason and the remedy."""


class WheelMissingError(EmbeddedStoreError):
    """The wheel with the server program is not installed."""
