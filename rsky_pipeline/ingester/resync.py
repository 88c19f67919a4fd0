"""When a repo is queued to be fetched again. Pure; times are monotonic seconds.

A repo whose chain breaks is queued at once, ahead of the history of others. If it breaks again soon
after, it waits in a stream of its own until a pause is over: whoever can make us believe that a
repo is broken, be it with forged commits, costs its host one request in that time.
"""

from collections import OrderedDict

from rsky_pipeline.streams.names import REPO_BACKFILL_HIGH, RESYNC_LATER

_MAX_REPOS = 50_000
_MAX_DELETING = 20  # waiting jobs that name deletions; beyond, comparing with the tree finds them


class Resyncs:
    """Which repos were queued lately."""

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._queued: OrderedDict[str, tuple[float, int]] = OrderedDict()  # when, waiting jobs

    def stream(self, did: str, deletes: bool, now: float) -> str | None:
        """Return the stream for a repo's job, or None if a job that waits will do.

        `deletes` says that the job names deletions.
        """
        queued, waiting = self._queued.get(did, (0.0, -1))
        if waiting < 0 or now - queued >= self._pause:
            self._queued[did] = (now, 0)
            self._queued.move_to_end(did)
            if len(self._queued) > _MAX_REPOS:
                self._queued.popitem(last=False)
            return REPO_BACKFILL_HIGH
        if waiting >= (_MAX_DELETING if deletes else 1):
            return None
        self._queued[did] = (queued, waiting + 1)
        return RESYNC_LATER

    def forget(self) -> None:
        """Forget everything, because the writer dropped what it held."""
        self._queued.clear()
