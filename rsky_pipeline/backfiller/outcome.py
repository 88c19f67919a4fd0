"""How an attempt at a repo can fail, and what follows from it."""

from typing import Literal

Kind = Literal["permanent", "transient", "rate_limited", "invalid"]


class RepoFailed(Exception):
    """An attempt failed.

    `permanent` ends the matter until the account changes. `invalid` and `transient` are tried
    again, then become dead letters. `rate_limited` is tried again without counting.
    """

    def __init__(
        self, kind: Kind, reason: str, message: str, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.retry_after = retry_after
