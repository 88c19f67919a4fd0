"""The loop of look-ups of accounts in the background, and the common part of its queues.

Checks wait in tables. Taking one puts its time off, so that another worker finds it again if this
one dies, and no connection is held while the network is asked.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable

import trio

from rsky_pipeline.database.connection import Database
from rsky_pipeline.observability.indexer import IndexerMetrics
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.errors import StoreError
from rsky_pipeline.runtime.link import Link

RETRY_SECONDS = 15  # doubles with every look-up that nobody answers
MAX_RETRY_SECONDS = 24 * 3600


class LookupUnknownError(Exception):
    """Nobody could answer; ask again later."""


class AccountChecks(ABC):
    """Takes checks, asks the network, stores the answers, on a connection of its own."""

    purpose: str  # of the connection, for the log
    idle_seconds: float  # between two looks at an empty queue

    def __init__(self, open_database: Callable[[], Database], metrics: IndexerMetrics) -> None:
        self.metrics = metrics
        self.boundary = Boundary(metrics.internal_error)
        self._open_database = open_database
        self.link = Link(
            self._open,
            purpose=self.purpose,
            failed=lambda _: metrics.fail(metrics.database_failures),
        )

    @abstractmethod
    async def work_once(self) -> bool:
        """Take some checks and resolve them; return whether there were any. Raises DatabaseError.

        Checks whose answers could not be stored are taken again, at the latest when their lease is
        over.
        """

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                busy = await self.work_once()
            except StoreError:  # counted and logged by the link
                # What was taken and not stored, perhaps on a connection that stands.
                await self.link.attempt(self.begin)
                busy = False
            except Exception as error:  # noqa: BLE001 - see runtime.boundary
                self.boundary.caught(error, self.purpose)
                busy = False
            if not busy:
                await trio.sleep(self.idle_seconds)

    def begin(self, database: Database) -> None:  # noqa: B027 - most begin with nothing
        """Prepare a new connection."""

    def close(self) -> None:
        """Close the connection."""
        self.link.close()

    def _open(self) -> Database:
        database = self._open_database()
        try:
            self.begin(database)
        except BaseException:
            database.close()
            raise
        return database


def wait_seconds(attempts: int) -> float:
    """Return how long to wait after a look-up that nobody answered; with jitter."""
    wait: float = min(RETRY_SECONDS * 2 ** min(attempts, 20), MAX_RETRY_SECONDS)
    return wait * random.uniform(0.75, 1.0)
