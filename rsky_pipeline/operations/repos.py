"""Fetching and verifying repos for commands, several at a time, each result handled as it comes."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio
from prometheus_client import CollectorRegistry

from rsky_pipeline.backfiller.build import build_fetcher
from rsky_pipeline.backfiller.fetch import Fetcher
from rsky_pipeline.backfiller.hosts import HostBusy
from rsky_pipeline.backfiller.outcome import RepoFailed
from rsky_pipeline.backfiller.unpack import Repo
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.runtime.threads import in_thread

AT_ONCE = 4  # repos that are downloaded while one is worked on
HOST_PATIENCE_SECONDS = 300.0  # for a host that wants to be left alone

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Result]):
    """What became of a repo: a result, or why there is none."""

    did: str
    result: Result | None = None
    reason: str = ""
    message: str = ""


async def each_repo(
    settings: Settings,
    dids: Sequence[str],
    work: Callable[[Repo], Result],
    report: Callable[[Outcome[Result]], None],
) -> None:
    """Fetch and verify each repo, call `work` with it in a thread, one at a time, and report.

    A repo that cannot be fetched costs itself. What `work` raises ends everything, except for
    RepoFailed.
    """
    one_at_a_time = trio.CapacityLimiter(1)
    failures: list[Exception] = []
    queue = iter(dids)

    async def fetch_some(fetcher: Fetcher, scope: trio.CancelScope) -> None:
        for did in queue:
            try:
                async with _fetched(fetcher, did) as repo:
                    result = await in_thread(work, repo, limiter=one_at_a_time)
            except RepoFailed as error:
                report(Outcome(did, None, error.reason, str(error)))
            except HostBusy as error:
                report(Outcome(did, None, "host_busy", str(error)))
            except Exception as error:  # noqa: BLE001 - raised again below, outside of the group
                failures.append(error)
                scope.cancel()
                return
            else:
                report(Outcome(did, result))

    async with (
        build_fetcher(settings, BackfillerMetrics(CollectorRegistry())) as fetcher,
        trio.open_nursery() as nursery,
    ):
        for _ in range(AT_ONCE):
            nursery.start_soon(fetch_some, fetcher, nursery.cancel_scope)
    if failures:
        raise failures[0]


@asynccontextmanager
async def _fetched(fetcher: Fetcher, did: str) -> AsyncIterator[Repo]:
    """Fetch a repo, waiting a while for a host that is busy."""
    deadline = trio.current_time() + HOST_PATIENCE_SECONDS
    async with AsyncExitStack() as stack:
        while True:
            try:
                repo = await stack.enter_async_context(fetcher.fetch(did, fresh=True))
                break
            except HostBusy as error:
                if trio.current_time() + error.seconds > deadline:
                    raise
                await trio.sleep(error.seconds)
        yield repo
