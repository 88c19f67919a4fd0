"""The exception boundary around work on one untrusted item: account, label, repo, host or listing.

An unexpected exception fails that item only. Without the boundary it would end the worker, and the
same item would end it again after each restart: one hostile text could stop a role for good. The
outermost function that works on one item therefore reads

    try:
        return await work_on(item)
    except Exception as error:
        boundary.caught(error, "identity", did=item.did)
    return UNKNOWN

where UNKNOWN is the item's own outcome for "not determined": unverified, a handle to look up later,
a failed attempt. Re-raise errors that a caller handles (an unavailable store) before this clause.
Never catch BaseException here: it would swallow trio.Cancelled.
"""

import logging
from collections.abc import Callable

from rsky_pipeline.runtime.errors import FINAL_CODES, WorkerError
from rsky_pipeline.runtime.logging import ThrottledLog

_log = logging.getLogger(__name__)


def _count_nothing() -> None:
    """Default `count`, for callers that count the item's outcome themselves."""


class Boundary:
    """Counts unexpected exceptions, and logs a throttled traceback for each kind.

    `count` increments the role's metric of errors with the reason `internal_error`.
    """

    def __init__(self, count: Callable[[], object] = _count_nothing) -> None:
        self._count = count
        self._log = ThrottledLog(_log)

    def caught(self, error: Exception, kind: str, **subject: str) -> None:
        """Count and log an exception; `kind` is from a fixed set, `subject` the item (`did=`).

        An error that ends the worker for good is raised again: it is no item's, for example when
        the address of the database leads to another installation's all at once. Every item would
        fail for it, until each is given up.
        """
        if isinstance(error, WorkerError) and error.exit_code in FINAL_CODES:
            raise error
        self._count()
        key = f"{kind} {type(error).__name__}"
        self._log.error("internal error: item skipped", key=key, error=error, kind=kind, **subject)
