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
from rsky_pipeline.database.isolation import apply_isolated, retry_conflicts
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
            later = {check.did for check in await self.thread.call(self._settle, found, unknown)}
            found = [item for item in found if item.check.did not in later]
            verified = sum(item.handle is not None for item in found)
            self.metrics.handle_checks.labels("verified").inc(verified)
            self.metrics.handle_checks.labels("unverified").inc(len(found) - verified)
            self.metrics.handle_checks.labels("failed").inc(len(later))
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

    def _settle(
        self, found: Sequence[HandleResult], unknown: Sequence[HandleCheck]
    ) -> list[HandleCheck]:
        """Write what was found and put off the rest; return all that was put off.

        An account whose row is refused is put off like one that nobody answered for: another worker
        may have given its handle to somebody else at this moment.
        """
        refused = apply_isolated(found, self._write)
        for culprit in refused:
            item = culprit.entry
            extra = {"did": item.check.did, "handle": item.handle, "error": culprit.message}
            _log.warning("handle cannot be stored", extra=extra)
        later = [*unknown, *(culprit.entry.check for culprit in refused)]
        apply_isolated(later, self._put_off)
        return later

    def _write(self, found: Sequence[HandleResult]) -> None:
        # Two accounts cannot both have verified one handle, unless it moved between the checks.
        owners = {item.handle: item.check.did for item in found}
        ordered = sorted(found, key=lambda item: item.check.did)
        dids = [item.check.did for item in ordered]
        handles = [
            item.handle if owners.get(item.handle) == item.check.did else None for item in ordered
        ]
        database = self.connected()

        def write() -> None:
            with database.transaction() as tx:
                tx.query(_LOCK, (dids, [handle for handle in handles if handle is not None]))
                tx.execute(_DISPOSSESS, (dids, handles))
                tx.execute(_SET, (now_text(), dids, handles))
                tx.execute(_DONE, (dids, [item.check.taken for item in ordered]))

        retry_conflicts(write, SETTLE_TRIES)

    def _put_off(self, checks: Sequence[HandleCheck]) -> None:
        waits = [wait_seconds(check.attempts) for check in checks]
        taken = [check.taken for check in checks]
        self.connected().execute(_LATER, ([check.did for check in checks], taken, waits))
