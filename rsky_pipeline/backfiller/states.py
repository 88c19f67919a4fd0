"""Outcomes on their way to PostgreSQL: written in batches, and never given up."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import trio

from rsky_pipeline.backfiller.gather import Gather
from rsky_pipeline.backfiller.ledger import Ledger, State, Stored
from rsky_pipeline.database.errors import DatabaseError
from rsky_pipeline.database.isolation import Culprit
from rsky_pipeline.observability.backfiller import BackfillerMetrics
from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.logging import Throttled
from rsky_pipeline.runtime.threads import StoreThread

log = logging.getLogger(__name__)
GATHER_SECONDS = 0.1  # how long a batch waits for more
Result = TypeVar("Result")


class Patient:
    """A ledger whose calls wait for PostgreSQL for as long as it takes."""

    def __init__(self, ledger: Ledger, metrics: BackfillerMetrics) -> None:
        self._ledger = ledger
        self._thread = StoreThread()
        self._metrics = metrics
        self._quiet = Throttled()

    async def call(self, action: Callable[[Ledger], Result]) -> Result:
        """Carry out an action until it succeeds; raises what cannot pass by waiting."""
        backoff = Backoff(base=0.2, cap=10.0)
        while True:
            try:
                return await self._thread.call(partial(self._try, action))
            except DatabaseError as error:
                if not error.retryable:
                    raise
                self._metrics.database_errors.inc()
                backoff, pause = backoff.failed(trio.current_time())
                if self._quiet.allow("database") is not None:
                    log.warning("PostgreSQL is waited for", extra={"error": str(error)})
                await trio.sleep(max(pause, 0.05))

    def _try(self, action: Callable[[Ledger], Result]) -> Result:
        try:
            return action(self._ledger)
        except DatabaseError:
            self._ledger.close()
            raise


class Knowledge:
    """What the database knows of repos; questions of many attempts go together."""

    def __init__(self, ledger: Patient) -> None:
        self._ledger = ledger
        self._stored = Gather(self._look_up)
        self._older = Gather(self._look_for_older)

    async def stored(self, did: str) -> Stored:
        """Return what is stored of a repo."""
        return await self._stored.call(did)

    async def has_older(self, did: str, rev: str) -> bool:
        """Tell whether rows of an account are older than a rev."""
        return await self._older.call((did, rev))

    async def gone(self, did: str, rev: str, held: Iterable[str], after: str) -> list[str]:
        """Return paths of older rows that are not among `held`; see `Ledger.gone`."""
        if not after and not await self.has_older(did, rev):
            return []
        # Begun anew with each try: a failure may come in the middle of it.
        return await self._ledger.call(lambda ledger: ledger.gone(did, rev, iter(held), after))

    async def _look_up(self, dids: Sequence[str]) -> list[Stored]:
        return await self._ledger.call(lambda ledger: ledger.stored_revs(dids))

    async def _look_for_older(self, repos: Sequence[tuple[str, str]]) -> list[bool]:
        return await self._ledger.call(lambda ledger: ledger.have_older(repos))


class States:
    """Gathers the states of repos; whoever noted one may wait until it is stored."""

    def __init__(self, ledger: Patient) -> None:
        self._ledger = ledger
        self._gathered: dict[str, State] = {}
        self._written = trio.Event()
        self._something = trio.Event()

    async def store(self, state: State) -> None:
        """Store a state; returns when it is stored, or a newer one of the same repo."""
        self._gathered[state.did] = state
        self._something.set()
        await self._written.wait()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._something.wait()
            await trio.sleep(GATHER_SECONDS)
            batch, written = list(self._gathered.values()), self._written
            self._gathered, self._written, self._something = {}, trio.Event(), trio.Event()
            for culprit in await self._ledger.call(partial(_write, batch)):
                extra = {"did": culprit.entry.did, "error": culprit.message}
                log.error("outcome cannot be stored", extra=extra)
            written.set()


def _write(batch: list[State], ledger: Ledger) -> list[Culprit[State]]:
    return ledger.write(batch)
