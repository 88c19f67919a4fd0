"""Looks up the handles of accounts, in the background and never in a batch's way.

A handle is written only if both directions agree: the DID document claims it, and DNS or the
handle's host names the DID. Otherwise it is NULL, which the AppView shows as handle.invalid. Checks
wait in `rsky_pipeline.handle_check`; what a worker had taken before it was restarted it takes again
at once, as with pending entries of a stream.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import BadData, TransactionConflict
from rsky_pipeline.indexer.accounts.checks import AccountChecks, LookupUnknownError, wait_seconds
from rsky_pipeline.indexer.core.entries import now_text
from rsky_pipeline.observability.indexer import IndexerMetrics

_log = logging.getLogger(__name__)
MANY = 100  # checks taken together
BUSY_PAUSE_SECONDS = 0.3
LEASE_SECONDS = 300
SETTLE_TRIES = 5

_TAKE = """
UPDATE rsky_pipeline.handle_check c
SET requested_at = now() + make_interval(secs => %s), taken_by = %s
FROM (
    SELECT did FROM rsky_pipeline.handle_check WHERE requested_at <= now()
    ORDER BY forced DESC, requested_at LIMIT %s FOR UPDATE SKIP LOCKED
) n
WHERE c.did = n.did RETURNING c.did, c.forced, c.attempts, c.requested_at
"""
_TAKE_BACK = """
UPDATE rsky_pipeline.handle_check SET requested_at = now(), taken_by = NULL WHERE taken_by = %s
"""
# A request that came in the meantime has another time, and stays.
_DONE = """
DELETE FROM rsky_pipeline.handle_check c
USING unnest(%b::text[], %b::timestamptz[]) AS n(did, taken)
WHERE c.did = n.did AND c.requested_at = n.taken
"""
_LATER = """
UPDATE rsky_pipeline.handle_check c SET attempts = LEAST(c.attempts, 30) + 1,
    requested_at = now() + make_interval(secs => n.wait), taken_by = NULL
FROM unnest(%b::text[], %b::timestamptz[], %b::float8[]) AS n(did, taken, wait)
WHERE c.did = n.did AND c.requested_at = n.taken
"""
_LOCK = """
SELECT did FROM actor WHERE did = ANY(%b::text[]) OR handle = ANY(%b::text[])
ORDER BY did FOR UPDATE
"""
_DISPOSSESS = """
UPDATE actor SET handle = NULL FROM unnest(%b::text[], %b::text[]) AS n(did, handle)
WHERE actor.handle = n.handle AND actor.did <> n.did
"""
_SET = """
UPDATE actor SET handle = n.handle, "indexedAt" = %s
FROM unnest(%b::text[], %b::text[]) AS n(did, handle) WHERE actor.did = n.did
"""


@dataclass(frozen=True, slots=True)
class HandleCheck:
    """A request to look up the handle of an account."""

    did: str
    forced: bool  # do not trust a cached document
    attempts: int  # earlier looks that nobody answered
    taken: object  # the time that marks this request, as PostgreSQL gave it


@dataclass(frozen=True, slots=True)
class HandleResult:
    """The outcome: a handle that both directions agree on, or None."""

    check: HandleCheck
    handle: str | None


class HandleChecks(AccountChecks):
    """Takes checks, asks the network, writes what it found.

    `find_document` returns None for a DID that does not exist; it and `find_did` raise
    LookupUnknownError.
    `worker` is a name that stays the same when this worker is restarted. While `is_busy`, looks
    begin one after the other with pauses: batches must not wait for them.
    """

    what = "handles"
    idle_seconds = 2.0

    def __init__(
        self,
        worker: str,
        open_database: Callable[[], Database],
        find_document: Callable[[str, bool], Awaitable[DidDocument | None]],
        find_did: Callable[[str], Awaitable[str | None]],
        metrics: IndexerMetrics,
        at_once: int = 10,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(open_database, metrics)
        self._worker = worker
        self._at_once = at_once
        self._is_busy = is_busy
        self._turn = trio.Lock()
        self._find_document = find_document
        self._find_did = find_did

    async def work_once(self) -> bool:
        """Take some checks and settle them; return whether there were any."""
        checks = await self.thread.call(self._take)
        found: list[HandleResult] = []
        unknown: list[HandleCheck] = []
        limit = trio.CapacityLimiter(self._at_once)

        async def look_up(check: HandleCheck) -> None:
            async with limit:
                await self._give_way()
                try:
                    found.append(HandleResult(check, await self._verified_handle(check)))
                except LookupUnknownError as error:
                    _log.info("handle unknown", extra={"did": check.did, "error": str(error)})
                    unknown.append(check)
                except Exception as error:  # noqa: BLE001 - see runtime.boundary
                    self.boundary.caught(error, "handle", did=check.did)
                    unknown.append(check)

        async with trio.open_nursery() as nursery:
            for check in checks:
                nursery.start_soon(look_up, check)
        if checks:
            await self.thread.call(self._settle_repeatedly, found, unknown)
        verified = sum(item.handle is not None for item in found)
        self.metrics.handle_checks.labels("verified").inc(verified)
        self.metrics.handle_checks.labels("unverified").inc(len(found) - verified)
        self.metrics.handle_checks.labels("failed").inc(len(unknown))
        return bool(checks)

    async def _give_way(self) -> None:
        async with self._turn:
            if self._is_busy():
                await trio.sleep(BUSY_PAUSE_SECONDS)

    async def _verified_handle(self, check: HandleCheck) -> str | None:
        document = await self._find_document(check.did, check.forced)
        if document is None or document.handle is None:
            return None
        handle = document.handle.lower()
        return handle if await self._find_did(handle) == check.did else None

    def begin(self, database: Database) -> None:
        """Take back what an earlier connection or life had taken: nobody works on it now."""
        database.execute(_TAKE_BACK, (self._worker,))

    def _take(self) -> list[HandleCheck]:
        rows = self.connected().query(_TAKE, (LEASE_SECONDS, self._worker, MANY))
        return [HandleCheck(*row) for row in rows]

    def _settle_repeatedly(
        self, found: Sequence[HandleResult], unknown: Sequence[HandleCheck]
    ) -> None:
        """Settle; another worker that gives one of the handles to somebody else is no failure."""
        for attempt in range(1, SETTLE_TRIES + 1):
            try:
                return self._settle(found, unknown)
            except (TransactionConflict, BadData):  # a deadlock, or the unique handle
                if attempt == SETTLE_TRIES:
                    raise
        return None

    def _settle(self, found: Sequence[HandleResult], unknown: Sequence[HandleCheck]) -> None:
        # Two accounts cannot both have verified one handle, unless it moved between the checks.
        owners = {item.handle: item.check.did for item in found}
        rows = sorted(
            (item.check.did, item.handle if owners.get(item.handle) == item.check.did else None)
            for item in found
        )
        dids = [did for did, _ in rows]
        handles = [handle for _, handle in rows]
        with self.connected().transaction() as tx:
            if rows:
                tx.query(_LOCK, (dids, [handle for handle in handles if handle is not None]))
                tx.execute(_DISPOSSESS, (dids, handles))
                tx.execute(_SET, (now_text(), dids, handles))
                tx.execute(_DONE, (dids, [item.check.taken for item in sorted_by_did(found)]))
            if unknown:
                waits = [wait_seconds(item.attempts) for item in unknown]
                taken = [item.taken for item in unknown]
                tx.execute(_LATER, ([item.did for item in unknown], taken, waits))


def sorted_by_did(found: Sequence[HandleResult]) -> list[HandleResult]:
    """Return outcomes in the order of their accounts."""
    return sorted(found, key=lambda item: item.check.did)
