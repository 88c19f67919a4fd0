"""One attempt at one repo: fetch, verify, and queue every record before the closing event."""

from collections.abc import Iterator
from datetime import UTC, datetime

import trio

from rsky_pipeline.atproto.datetimes import format_utc
from rsky_pipeline.backfiller.fetch import SMALL_REPO, Fetcher, TooLarge
from rsky_pipeline.backfiller.outcome import RepoFailed
from rsky_pipeline.backfiller.output import Output
from rsky_pipeline.backfiller.unpack import Chunk, Repo, chunks, closing_entry
from rsky_pipeline.runtime.threads import in_thread
from rsky_pipeline.streams.event import RepoJob


class Attempt:
    """Carries out attempts; the settings and connections are the worker's."""

    def __init__(self, fetcher: Fetcher, output: Output) -> None:
        self._fetcher = fetcher
        self._output = output
        self._threads = trio.CapacityLimiter(1)  # unpacking is CPU work under one lock anyway

    async def run(self, job: RepoJob) -> None:
        """Bring in a repo. Raises RepoFailed."""
        did = job.did
        document = await self._fetcher.document(did)
        if document.pds is None:
            raise RepoFailed("permanent", "no_pds", f"the DID document of {did} names no PDS")
        budget = self._fetcher.budget
        for size in (min(SMALL_REPO, budget.total), budget.total):
            async with budget.grant(size):
                try:
                    repo = await self._fetcher.download(did, document.pds, size)
                except TooLarge:
                    continue
                await self._fetcher.verified(repo, document)
                _require_recent(repo, job)
                await self._queue(repo, job)
                return
        raise RepoFailed(
            "invalid",
            "too_big",
            f"the repo needs more than backfiller_memory_mb "
            f"({self._fetcher.settings.backfiller_memory_mb})",
        )

    async def _queue(self, repo: Repo, job: RepoJob) -> None:
        time = format_utc(datetime.now(UTC))
        source = chunks(repo, self._fetcher.settings.collections, time, job.deleted)
        metrics = self._fetcher.metrics
        while chunk := await in_thread(_next, source, limiter=self._threads):
            await self._output.append(chunk.entries)
            metrics.records.inc(len(chunk.entries))
            metrics.filtered.inc(chunk.filtered)
            metrics.unreadable.inc(chunk.unreadable)
        await self._output.append([closing_entry(repo, time)])


def _require_recent(repo: Repo, job: RepoJob) -> None:
    """A repo older than the commit whose deletions are to be proven proves nothing of them."""
    if job.deleted and repo.commit.rev < job.rev:
        message = f"the PDS serves rev {repo.commit.rev}, deletions of {job.rev} are to be checked"
        raise RepoFailed("transient", "stale_repo", message)


def _next(source: Iterator[Chunk]) -> Chunk | None:
    return next(source, None)
