"""Errors before an embedded store runs."""


class EmbeddedStoreError(Exception):
    """An embedded store cannot be used; the message says why and what to do."""


class WheelMissingError(EmbeddedStoreError):
    """The wheel with the server program is not installed."""
