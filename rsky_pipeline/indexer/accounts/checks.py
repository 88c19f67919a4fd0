"""The loop of what is looked up of accounts in the background, and what its queues have in common.

Checks wait in tables. Taking one puts its time off, so that another worker finds it again if this
one dies, and no connection is held while the network is asked.
"""

import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable

import trio

from rsky_pipeline.database.connection import Database
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.observability.indexer import IndexerMetrics
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.threads import StoreThread

_log = logging.getLogger(__name__)
RETRY_SECONDS = 15  # doubles with every look that nobody answers
MAX_RETRY_SECONDS = 24 * 3600


class LookupUnknownError(Exception):
    """Nobody could answer; ask again later."""


class AccountChecks(ABC):
    """Takes checks, asks the network, writes what it found, on a connection of its own."""

    what: str  # is looked up, for the log
    idle_seconds: float  # before an empty queue is looked at again

    def __init__(self, open_database: Callable[[], Database], metrics: IndexerMetrics) -> None:
        self.metrics = metrics
        self.boundary = Boundary(metrics.internal_error)
        self.thread = StoreThread()
        self._open_database = open_database
        self._database: Database | None = None

    @abstractmethod
    async def work_once(self) -> bool:
        """Take some checks and settle them; return whether there were any."""

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                busy = await self.work_once()
            except DatabaseError as error:
                self.metrics.fail(self.metrics.database_failures)
                _log.warning(f"{self.what} are looked up later", extra={"error": str(error)})
                await self.thread.call(self.close)
                busy = False
            except Exception as error:  # noqa: BLE001 - see runtime.boundary
                self.boundary.caught(error, self.what)
                busy = False
            if not busy:
                await trio.sleep(self.idle_seconds)

    def connected(self) -> Database:
        """Return the connection, in the thread; a new one after a failure. Raises DatabaseError."""
        if self._database is None:
            self._database = self._open_database()
            self.begin(self._database)
        return self._database

    def begin(self, database: Database) -> None:  # noqa: B027 - most begin with nothing
        """Do what a new connection begins with."""

    def close(self) -> None:
        """Close the connection."""
        database, self._database = self._database, None
        if database is not None:
            database.close()


def wait_seconds(attempts: int) -> float:
    """Return how long to wait after a look that nobody answered; with jitter."""
    wait: float = min(RETRY_SECONDS * 2 ** min(attempts, 20), MAX_RETRY_SECONDS)
    return wait * random.uniform(0.75, 1.0)
