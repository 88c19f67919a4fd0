"""Looks up the handles of accounts, in the background and never in a batch's way.

A handle is written only if both directions agree: the DID document claims it, and DNS or the
handle's host names the DID. Otherwise it is NULL, which the AppView shows as handle.invalid. Checks
wait in `rsky_pipeline.handle_check`; a restarted worker takes the checks that it had taken before
again at once, as with pending entries of a stream.
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
PAGE_CHECKS = 100
BUSY_PAUSE_SECONDS = 0.3
LEASE_SECONDS = 300
STORE_TRIES = 5

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
    """The answer to a check: a handle that both directions agree on, or None for no such handle.

    `answered` is False where nobody could be asked; then the check comes again.
    """

    check: HandleCheck
    handle: str | None
    answered: bool = True


class HandleChecks(AccountChecks):
    """Takes checks, asks the network, stores the results.

    `find_document` returns None for a DID that does not exist; it and `find_did` raise
    LookupUnknownError.
    `worker` is a name that stays the same when this worker is restarted. While `is_busy`, looks
    begin one after the other with pauses: batches must not wait for them.
    """

    purpose = "handle checks"
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
        """Take some checks, look them up and store the results; return whether there were any."""
        checks = await self.link.call(self._take)
        results: list[HandleResult] = []
        limit = trio.CapacityLimiter(self._at_once)

        async def look_up(check: HandleCheck) -> None:
            async with limit:
                await self._give_way()
                try:
                    results.append(HandleResult(check, await self._verified_handle(check)))
                except LookupUnknownError as error:
                    _log.info("handle unknown", extra={"did": check.did, "error": str(error)})
                    results.append(HandleResult(check, None, answered=False))
                except Exception as error:  # noqa: BLE001 - see runtime.boundary
                    self.boundary.caught(error, "handle", did=check.did)
                    results.append(HandleResult(check, None, answered=False))

        async with trio.open_nursery() as nursery:
            for check in checks:
                nursery.start_soon(look_up, check)
        if results:
            refused = await self.link.call(lambda database: _store(database, results))
            self._count(results, refused)
        return bool(checks)

    def _count(self, results: Sequence[HandleResult], refused: int) -> None:
        answered = [item for item in results if item.answered]
        verified = sum(item.handle is not None for item in answered)
        counter = self.metrics.handle_checks
        counter.labels("verified").inc(max(0, verified - refused))
        counter.labels("unverified").inc(len(answered) - verified)
        counter.labels("failed").inc(len(results) - len(answered) + refused)

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
        """Take back the checks of an earlier connection or life: nobody works on them now."""
        database.execute(_TAKE_BACK, (self._worker,))

    def _take(self, database: Database) -> list[HandleCheck]:
        rows = database.query(_TAKE, (LEASE_SECONDS, self._worker, PAGE_CHECKS))
        return [HandleCheck(*row) for row in rows]


def _store(database: Database, results: Sequence[HandleResult]) -> int:
    """Store results; return how many PostgreSQL refused, which are looked up again later.

    One account's result must not hold up those of the others, whatever is wrong with it: another
    worker may also have given its handle to somebody else at this moment.
    """
    culprits = apply_isolated(
        results,
        lambda part: retry_conflicts(lambda: _store_once(database, part), STORE_TRIES),
    )
    for culprit in culprits:
        check = culprit.entry.check
        extra = {"did": check.did, "handle": culprit.entry.handle, "error": culprit.message}
        _log.warning("PostgreSQL refused the handle of an account", extra=extra)
        _store_once(database, [HandleResult(check, None, answered=False)])
    return len(culprits)


def _store_once(database: Database, results: Sequence[HandleResult]) -> None:
    answered = sorted((item for item in results if item.answered), key=lambda item: item.check.did)
    unknown = [item.check for item in results if not item.answered]
    # Two accounts cannot both have verified one handle, unless it moved between the checks.
    owners = {item.handle: item.check.did for item in answered}
    dids = [item.check.did for item in answered]
    handles = [item.handle if owners[item.handle] == item.check.did else None for item in answered]
    with database.transaction() as tx:
        if answered:
            tx.query(_LOCK, (dids, [handle for handle in handles if handle is not None]))
            tx.execute(_DISPOSSESS, (dids, handles))
            tx.execute(_SET, (now_text(), dids, handles))
            tx.execute(_DONE, (dids, [item.check.taken for item in answered]))
        if unknown:
            waits = [wait_seconds(check.attempts) for check in unknown]
            taken = [check.taken for check in unknown]
            tx.execute(_LATER, ([check.did for check in unknown], taken, waits))
