"""One connection to one store, its worker thread, and what happens when the store fails.

A connection is a lease: no correctness rests on one that outlives a call. `Link` opens it when it
is first needed, in the thread that uses it, and closes it after every failure after which it must
not be used again; the next call opens another. That is what brings a worker through a fail-over:
a server that became a replica behind its address goes on answering (with refusals) for as long as
the old connection is kept.

Every user of Redis or PostgreSQL in a long-lived worker goes through a link. Nobody else catches
the stores' errors to wait or to connect again.
"""

import logging
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, overload

import trio

from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.errors import StoreError
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.runtime.threads import in_thread

_log = logging.getLogger(__name__)
LEAST_PAUSE_SECONDS = 0.05  # full jitter may draw next to nothing
BASE_SECONDS, CAP_SECONDS = 0.2, 10.0  # of the pauses between tries


class Closable(Protocol):
    """A connection of a blocking client."""

    def close(self) -> None:
        """Close it, whatever state it is in; never raises."""


Connection = TypeVar("Connection", bound=Closable)
Result = TypeVar("Result")


class Link(Generic[Connection]):
    """One connection and its thread; calls wait for each other.

    An action is a blocking function of the connection. It runs in a thread, which cannot be
    cancelled, so the server has to bound it in time (`XREADGROUP BLOCK`, `statement_timeout`), and
    a cancelled call returns when its action has ended. A hop costs about 240 us: act on batches.
    An action that `retry` repeats must be safe to repeat after a lost reply.

    `StoreError.reconnect` and `.retryable` of an error decide what follows. Any other exception
    closes the connection too, since a part of a reply may be left unread on it.
    """

    def __init__(
        self,
        open_connection: Callable[[], Connection],
        *,
        purpose: str,
        failed: Callable[[StoreError], object] | None = None,
        base: float = BASE_SECONDS,
        cap: float = CAP_SECONDS,
    ) -> None:
        """`purpose` names the connection in the log. `failed` is called in the event loop for
        every failure of the store, to count it and to note that the activity only waits."""
        self.purpose = purpose
        self._open_connection = open_connection
        self._failed = failed
        self._base, self._cap = base, cap
        self._connection: Connection | None = None
        self._limiter = trio.CapacityLimiter(1)
        self._throttled = ThrottledLog(_log)
        self._trouble = False

    @property
    def in_trouble(self) -> bool:
        """Whether the last call failed because of the store: work that waits is not to blame."""
        return self._trouble

    async def call(self, action: Callable[[Connection], Result]) -> Result:
        """Carry out an action once. Raises what it raises, and what opening a connection raises.

        Failures of the store are counted and logged here already.
        """
        try:
            result = await in_thread(self._act, action, limiter=self._limiter)
        except StoreError as error:
            self._trouble = error.retryable
            if self._failed is not None:
                self._failed(error)
            self._throttled.warning(
                "store failed", key=type(error).__name__, purpose=self.purpose, error=error
            )
            raise
        self._trouble = False
        return result

    async def attempt(self, action: Callable[[Connection], Result]) -> Result | None:
        """Carry out an action once; None after a failure that a later call may not meet.

        For work that comes round again anyway, such as looking at the streams every few seconds.
        """
        try:
            return await self.call(action)
        except StoreError as error:
            if not error.retryable:
                raise
            return None

    @overload
    async def retry(self, action: Callable[[Connection], Result]) -> Result: ...

    @overload
    async def retry(
        self, action: Callable[[Connection], Result], *, until: trio.Event
    ) -> Result | None: ...

    async def retry(
        self, action: Callable[[Connection], Result], *, until: trio.Event | None = None
    ) -> Result | None:
        """Carry out an action until it succeeds, with growing pauses; raises what cannot pass.

        It is tried at least once. Returns None when `until` is set before a further try.
        """
        backoff = Backoff(self._base, self._cap)
        while True:
            try:
                return await self.call(action)
            except StoreError as error:
                if not error.retryable:
                    raise
            backoff, pause = backoff.failed(trio.current_time())
            pause = max(pause, LEAST_PAUSE_SECONDS)
            if until is None:
                await trio.sleep(pause)
                continue
            with trio.move_on_after(pause):
                await until.wait()
            if until.is_set():
                return None

    def close(self) -> None:
        """Close the connection, if there is one; a later call opens another.

        Not while a call is under way.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _act(self, action: Callable[[Connection], Result]) -> Result:
        try:
            if self._connection is None:
                self._connection = self._open_connection()
            return action(self._connection)
        except BaseException as error:
            if not isinstance(error, StoreError) or error.reconnect:
                self.close()
            raise
