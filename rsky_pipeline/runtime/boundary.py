"""The boundary around work on one item of a stranger: an account, label, repo, host or listing.

Whatever such an item makes our code or a library raise, it costs that item alone. Otherwise the
exception ends the worker, and the item is met again after each restart: one text of a stranger
would stop a role for everybody. So the outermost point of the work on one item is

    try:
        return await work_on(item)
    except Exception as error:
        boundary.caught(error, "identity", did=item.did)
    return UNKNOWN

where UNKNOWN is the outcome of an item that could not be judged: unverified, a handle to look up
later, a failed attempt. Errors that somebody above handles (of a store that is away) pass first.
Never catch BaseException here: a cancelled task has to end.
"""

import logging
from collections.abc import Callable

from rsky_pipeline.runtime.logging import ThrottledLog

_log = logging.getLogger(__name__)


def _count_nothing() -> None:
    """Stand in where the item's outcome is counted already."""


class Boundary:
    """Counts exceptions that nobody declared, and logs a traceback once in a while for each kind.

    `count` increments the role's metric of errors with the reason `internal_error`.
    """

    def __init__(self, count: Callable[[], object] = _count_nothing) -> None:
        self._count = count
        self._log = ThrottledLog(_log)

    def caught(self, error: Exception, kind: str, **subject: str) -> None:
        """Note an exception; `kind` is one of few words, `subject` the item, such as `did=`."""
        self._count()
        key = f"{kind} {type(error).__name__}"
        self._log.error("internal error: item skipped", key=key, error=error, kind=kind, **subject)
