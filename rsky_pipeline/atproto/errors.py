"""Errors of data from outside: a code for counters, and a text for people."""


class InvalidDataError(ValueError):
    """Bytes or values that break a rule of the protocol.

    `reason` is a short stable code, safe as a metric label; the message has the details.
    """

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason


class IncompleteTreeError(InvalidDataError):
    """A block that a tree refers to is not there, so the tree must not be used as a whole repo."""

    def __init__(self, message: str) -> None:
        super().__init__("missing_block", message)
