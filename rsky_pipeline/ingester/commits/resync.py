"""When a repo is queued to be fetched: resyncs, their pause, and repos that are new.

A repo whose chain breaks is queued at once, ahead of the history of others. If it breaks again
soon after, it waits in a stream of its own until a pause is over: whoever can make a repo look
broken, be it with forged commits, costs its host one request in that time.

A repo whose first commit was not seen is queued to be fetched as a whole, once: its state is then
kept as any other. So is one without a state whose account is said to be active: it may have come
back, and not commit for long. As it stays without a state, each such event queues it, which costs
one request where its PDS has nothing new. After a start with an empty store nearly every repo is
new, and the listing finds them as well; so there is a limit on how fast they are queued. A repo
that comes above it is not remembered, and found at a later commit. Nor is one that comes while the
stream that they are queued in is at its high-water mark: live events must not wait for it.

What nobody has signed, as far as is known, proves nothing: not even that there is a commit. So
the fetches that such frames cause are limited in rate for each relay (`UNPROVEN_PER_MINUTE`), as
are those for commits without `prevData` of accounts that never showed it. A repo that comes above
the limit is marked in its state (`states.OWED`) and fetched at a later commit.

Times are monotonic seconds.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import trio

from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.event import MalformedEventError
from rsky_pipeline.streams.names import REPO_BACKFILL_HIGH, RESYNC_LATER
from rsky_pipeline.streams.repo_job import REPO_FIELD, RepoJob, decode_repo_job, encode_repo_job

_log = logging.getLogger(__name__)

BURST = 300  # new repos that may be queued at once
UNPROVEN_PER_MINUTE = 300  # of one relay
UNPROVEN_BURST = 1_000
_MAX_REPOS = 50_000
_MAX_DELETING = 20  # waiting jobs that name deletions; beyond, comparing with the tree finds them
_CHECK_SECONDS = 1.0
_BATCH_JOBS = 500


class Resyncs:
    """The repos that were queued lately."""

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._queued: OrderedDict[str, tuple[float, int]] = OrderedDict()  # when, waiting jobs

    def stream(self, did: str, deletes: bool, now: float) -> str | None:
        """Return the stream for a repo's job, or None if a job that waits will do.

        `deletes` says that the job names deletions.
        """
        queued, waiting = self._queued.get(did, (0.0, -1))
        if self.spares(did, deletes, now):
            return None
        if waiting < 0 or now - queued >= self._pause:
            self._queued[did] = (now, 0)
            self._queued.move_to_end(did)
            if len(self._queued) > _MAX_REPOS:
                self._queued.popitem(last=False)
            return REPO_BACKFILL_HIGH
        self._queued[did] = (queued, waiting + 1)
        return RESYNC_LATER

    def spares(self, did: str, deletes: bool, now: float) -> bool:
        """Tell whether a job of the repo waits already, which will do for one more."""
        queued, waiting = self._queued.get(did, (0.0, -1))
        enough = _MAX_DELETING if deletes else 1
        return waiting >= enough and now - queued < self._pause

    def discard(self, did: str) -> None:
        """Forget a repo whose job may not have been queued."""
        self._queued.pop(did, None)

    def forget(self) -> None:
        """Forget all queued repos: the writer dropped their jobs unwritten."""
        self._queued.clear()


class Rate:
    """So many a minute, and up to `burst` at once after a quiet time."""

    def __init__(self, per_minute: int, burst: int) -> None:
        self._per_second = per_minute / 60.0
        self._burst = float(burst)
        self._tokens = float(burst)
        self._at = 0.0

    def admits(self, now: float) -> bool:
        """Tell whether one more may be queued now, and count it if so."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Discovery:
    """How many repos may be queued now; none where repos are not wanted at all."""

    def __init__(self, per_minute: int, high_water_mark: int = 0) -> None:
        """A mark of 0 stands for none."""
        self.enabled = per_minute > 0  # whether repos are discovered at all
        self._rate = Rate(per_minute, min(BURST, per_minute))
        self._mark = high_water_mark
        self._length = 0  # of the stream, as far as it is known

    def admits(self, now: float) -> bool:
        """Tell whether one more new repo may be queued now, and count it if so."""
        if (self._mark and self._length >= self._mark) or not self._rate.admits(now):
            return False
        self._length += 1
        return True

    def observe_length(self, length: int) -> None:
        """Set the real length of the stream."""
        self._length = length


async def release_resyncs(link: Link[Store], high_water_mark: int, pause: float) -> None:
    """Queue the waiting repos whose pause is over, until cancelled."""
    release = partial(release_due, high_water_mark=high_water_mark, pause=pause)
    while True:
        moved = await link.attempt(release)
        if moved is None or moved < _BATCH_JOBS:
            await trio.sleep(_CHECK_SECONDS)


def release_due(store: Store, high_water_mark: int, pause: float) -> int:
    """Queue the repos whose pause is over, each once; return how many entries that ended.

    Raises StoreUnavailableError and StoreRejectedError.
    """
    seconds, micros = store.call("TIME")
    due = int(seconds) * 1_000 + int(micros) // 1_000 - int(pause * 1_000)
    found = store.call("XRANGE", RESYNC_LATER, "-", str(due), "COUNT", _BATCH_JOBS)
    if not found:
        return 0
    ids = [entry_id for entry_id, _ in found]
    payloads = merged([fields[1] for _, fields in found])
    arguments = [high_water_mark, REPO_FIELD, len(ids), *ids, *payloads]
    done = store.script("release", [RESYNC_LATER, REPO_BACKFILL_HIGH], arguments)
    return 0 if done < 0 else len(ids)


def merged(payloads: Sequence[bytes]) -> list[bytes]:
    """Return one job for each repo, of the highest rev and with all deletions.

    Unreadable ones come behind as they are: a backfiller makes dead letters of them.
    """
    jobs: dict[str, RepoJob] = {}
    unreadable: list[bytes] = []
    for payload in payloads:
        try:
            job = decode_repo_job(payload)
        except MalformedEventError as error:
            _log.error("waiting repo job unreadable", extra={"error": str(error)})
            unreadable.append(payload)
            continue
        before = jobs.get(job.did)
        if before is not None:
            deleted = tuple(dict.fromkeys((*before.deleted, *job.deleted)))
            job = replace(job, rev=max(before.rev, job.rev), deleted=deleted)
        jobs[job.did] = job
    return [*map(encode_repo_job, jobs.values()), *unreadable]
