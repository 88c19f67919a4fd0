"""Fetching and verifying repos for commands, several at a time, each result handled as it comes."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import trio
from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.selection import Selection
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.database.errors import DatabaseError, TransactionConflictError
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.repos.changes import StillChangingError
from rsky_pipeline.repos.fetch import Fetcher, open_fetcher
from rsky_pipeline.repos.hosts import HostBusyError
from rsky_pipeline.repos.repo import FailureKind, Repo, RepoError
from rsky_pipeline.runtime.errors import described

_log = logging.getLogger(__name__)
DOWNLOADS = 4  # repos that are downloaded while one is worked on
HOST_PATIENCE_SECONDS = 300.0  # for a host that asks to be left alone

_OF_OUR_DISK = {"no_disk", "unreadable"}  # reasons

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RepoResult(Generic[Result]):
    """The outcome for a repo: a result, or the reason of its failure."""

    did: str
    result: Result | None = None
    reason: str = ""
    message: str = ""
    kind: FailureKind | None = None  # of a failure

    def document(self, done: Callable[[Result], dict[str, Any]]) -> dict[str, Any]:
        """Return it as JSON; `done` describes a result."""
        if self.result is None:
            return {"did": self.did, "error": self.reason, "message": self.message}
        return done(self.result)


def none_reachable(outcomes: Sequence[RepoResult[Result]]) -> bool:
    """Return whether every repo failed because its directory or host could not be asked."""
    return bool(outcomes) and all(
        each.kind in ("transient", "rate_limited") and each.reason not in _OF_OUR_DISK
        for each in outcomes
    )


async def each_repo(
    settings: Settings,
    dids: Sequence[str],
    work: Callable[[Repo], Awaitable[Result]],
    report: Callable[[RepoResult[Result]], None],
    selection: Selection | None = None,
) -> None:
    """Fetch and verify repos concurrently, run `work` on one at a time, and report each outcome.

    Repos that `selection` leaves out fail. RepoError, of a fetch or of `work`, fails that repo
    only, and so does an error that its rows or a defect may have caused. Errors of PostgreSQL that
    would hit every repo end the call.
    """
    one_at_a_time = trio.Lock()
    failures: list[Exception] = []
    queue = iter(dids)

    async def fetch_some(fetcher: Fetcher, scope: trio.CancelScope) -> None:
        for did in queue:
            try:
                async with _fetched(fetcher, did) as repo, one_at_a_time:
                    result = await work(repo)
            except RepoError as error:
                report(RepoResult(did, None, error.reason, str(error), error.kind))
            except HostBusyError as error:
                report(RepoResult(did, None, "host_busy", str(error), "rate_limited"))
            except Exception as error:  # noqa: BLE001 - a repo must not stop the others
                if _hits_every_repo(error):
                    failures.append(error)
                    scope.cancel()
                    return
                if not isinstance(error, DatabaseError | StillChangingError):
                    _log.exception("repo failed", extra={"did": did})
                report(RepoResult(did, None, "internal_error", described(error), "invalid"))
            else:
                report(RepoResult(did, result))

    async with (
        open_fetcher(
            settings, BackfillerMetrics(CollectorRegistry()), lambda: selection or Selection()
        ) as fetcher,
        trio.open_nursery() as nursery,
    ):
        for _ in range(DOWNLOADS):
            nursery.start_soon(fetch_some, fetcher, nursery.cancel_scope)
    if failures:
        raise failures[0]


def _hits_every_repo(error: Exception) -> bool:
    if isinstance(error, TransactionConflictError):  # tried often enough: another's lock on rows
        return False
    return isinstance(error, DatabaseError) and not error.follows_data


@asynccontextmanager
async def _fetched(fetcher: Fetcher, did: str) -> AsyncIterator[Repo]:
    """Fetch a repo, waiting a while for a host that is busy."""
    deadline = trio.current_time() + HOST_PATIENCE_SECONDS
    async with AsyncExitStack() as stack:
        while True:
            try:
                repo = await stack.enter_async_context(fetcher.fetch(did, fresh=True))
                break
            except HostBusyError as error:
                if trio.current_time() + error.seconds > deadline:
                    raise
                await trio.sleep(error.seconds)
        yield repo
