"""Repos that had to wait before they are fetched again, moved on when their time has come."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import trio

from rsky_pipeline.runtime.threads import StoreThread
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.errors import StoreRejected, StoreUnavailable
from rsky_pipeline.streams.event import MalformedEvent
from rsky_pipeline.streams.names import REPO_BACKFILL_HIGH, RESYNC_LATER
from rsky_pipeline.streams.repo_job import REPO_FIELD, RepoJob, decode_repo_job, encode_repo_job

_log = logging.getLogger(__name__)
_CHECK_SECONDS = 1.0
_AT_ONCE = 500


async def release_resyncs(store: Store, high_water_mark: int, pause: float) -> None:
    """Move jobs on until cancelled."""
    thread = StoreThread()
    while True:
        try:
            moved = await thread.call(release_due, store, high_water_mark, pause)
        except (StoreUnavailable, StoreRejected) as error:
            moved = 0
            _log.warning("repos wait longer to be fetched again", extra={"error": str(error)})
        if moved < _AT_ONCE:
            await trio.sleep(_CHECK_SECONDS)


def release_due(store: Store, high_water_mark: int, pause: float) -> int:
    """Queue the repos whose pause is over, each once; return how many entries that ended.

    Raises StoreUnavailable and StoreRejected.
    """
    seconds, micros = store.call("TIME")
    due = int(seconds) * 1_000 + int(micros) // 1_000 - int(pause * 1_000)
    found = store.call("XRANGE", RESYNC_LATER, "-", str(due), "COUNT", _AT_ONCE)
    if not found:
        return 0
    ids = [entry_id for entry_id, _ in found]
    payloads = merged([fields[1] for _, fields in found])
    arguments = [high_water_mark, REPO_FIELD, len(ids), *ids, *payloads]
    done = store.script("release", [RESYNC_LATER, REPO_BACKFILL_HIGH], arguments)
    return 0 if done < 0 else len(ids)


def merged(payloads: Sequence[bytes]) -> list[bytes]:
    """Return one job for each repo, of the highest rev and with all deletions."""
    jobs: dict[str, RepoJob] = {}
    for payload in payloads:
        try:
            job = decode_repo_job(payload)
        except MalformedEvent as error:
            _log.error("a waiting repo job cannot be read", extra={"error": str(error)})
            continue
        before = jobs.get(job.did)
        if before is not None:
            deleted = tuple(dict.fromkeys((*before.deleted, *job.deleted)))
            job = replace(job, rev=max(before.rev, job.rev), deleted=deleted)
        jobs[job.did] = job
    return [encode_repo_job(job) for job in jobs.values()]
