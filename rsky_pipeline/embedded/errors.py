"""Errors of preparing an embedded store."""


class EmbeddedStoreError(Exception):
    """An embedded store cannot be used; the message has the reason and the remedy."""


class WheelMissingError(EmbeddedStoreError):
    """The wheel with the server program is not installed."""
