"""Asks the hosts of accounts that are said to be deleted, and purges those that really are.

Gone is an account whose DID does not exist, whose document names no host, or whose host answers
RepoNotFound: as officially. A host that still has the repo wins over the event, which may be the
farewell of a host that the account has moved away from.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.indexer.accounts.actors import lock_actors
from rsky_pipeline.indexer.accounts.checks import AccountChecks, LookupUnknownError, wait_seconds
from rsky_pipeline.indexer.accounts.purge import purge_account
from rsky_pipeline.indexer.accounts.statuses import DELETED
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.observability.indexer import IndexerMetrics
from rsky_pipeline.runtime.errors import StoreError

_log = logging.getLogger(__name__)
# Until another worker looks. Two that purge at once wait for each other and find nothing to do.
LEASE_SECONDS = 30

_TAKE = """
UPDATE rsky_pipeline.deletion_check c SET requested_at = now() + make_interval(secs => %s)
FROM (
    SELECT did FROM rsky_pipeline.deletion_check WHERE requested_at <= now()
    ORDER BY requested_at LIMIT 1 FOR UPDATE SKIP LOCKED
) n
WHERE c.did = n.did RETURNING c.did, c.attempts, c.requested_at
"""
_DONE = "DELETE FROM rsky_pipeline.deletion_check WHERE did = %s AND requested_at = %s"
_LATER = """
UPDATE rsky_pipeline.deletion_check SET attempts = LEAST(attempts, 30) + 1,
    requested_at = now() + make_interval(secs => %s)
WHERE did = %s AND requested_at = %s
"""
_IS_DELETED = 'SELECT "upstreamStatus" FROM actor WHERE did = %s'
_SET_STATUS = """
UPDATE actor SET "upstreamStatus" = %s WHERE did = %s AND "upstreamStatus" = %s
"""


@dataclass(frozen=True, slots=True)
class Hosted:
    """The account's host still has it; `status` is None for an active one."""

    status: str | None


@dataclass(frozen=True, slots=True)
class DeletionCheck:
    """A request to ask the host of an account that is said to be deleted."""

    did: str
    attempts: int
    taken: object


class DeletionChecks(AccountChecks):
    """Takes checks one after the other, asks the host, and purges or keeps the account.

    `find_host` returns None for an account that is gone, and raises LookupUnknownError when nobody
    answers.
    """

    purpose = "deletion checks"
    idle_seconds = 5.0

    def __init__(
        self,
        open_database: Callable[[], Database],
        find_host: Callable[[str], Awaitable[Hosted | None]],
        collections: Mapping[str, Collection],
        metrics: IndexerMetrics,
    ) -> None:
        super().__init__(open_database, metrics)
        self._find_host = find_host
        self._collections = collections

    async def work_once(self) -> bool:
        """Take a check, ask the host, purge or keep; return whether there was a check."""
        check = await self.link.call(_take)
        if check is None:
            return False
        try:
            result = await self._resolve(check)
        except LookupUnknownError as error:
            _log.info("deletion unknown", extra={"did": check.did, "error": str(error)})
            result = "unknown"
        except Exception as error:
            of_data = isinstance(error, DatabaseError) and error.follows_data
            if isinstance(error, StoreError) and not of_data:
                raise
            self.boundary.caught(error, "deletion", did=check.did)
            result = "unknown"
        if result == "unknown":
            await self.link.call(partial(_put_off, check))
        self.metrics.deletions.labels(result).inc()
        return True

    async def _resolve(self, check: DeletionCheck) -> str:
        """Return the result of a check: hosted, purged, or obsolete."""
        hosted = await self._find_host(check.did)
        if hosted is not None:
            await self.link.call(partial(_keep, check, hosted))
            return "hosted"
        records = await self.link.call(partial(_purge, check, self._collections))
        if records is None:
            return "obsolete"
        _log.info("account purged", extra={"did": check.did, "records": records})
        return "purged"


def _take(database: Database) -> DeletionCheck | None:
    rows = database.query(_TAKE, (LEASE_SECONDS,))
    return DeletionCheck(*rows[0]) if rows else None


def _put_off(check: DeletionCheck, database: Database) -> None:
    database.execute(_LATER, (wait_seconds(check.attempts), check.did, check.taken))


def _keep(check: DeletionCheck, hosted: Hosted, database: Database) -> None:
    with database.transaction() as tx:
        tx.execute(_SET_STATUS, (hosted.status, check.did, DELETED))
        tx.execute(_DONE, (check.did, check.taken))


def _purge(
    check: DeletionCheck, collections: Mapping[str, Collection], database: Database
) -> int | None:
    """Purge unless the account has come back meanwhile; return how many records it had."""
    with database.transaction() as tx:
        lock_actors(tx, {check.did})
        came_back = tx.query(_IS_DELETED, (check.did,)) != [(DELETED,)]
    records = None if came_back else purge_account(database, check.did, collections)
    database.execute(_DONE, (check.did, check.taken))
    return records
