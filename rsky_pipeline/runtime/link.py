"""One connection to one store, its worker thread, and its recovery from failures of the store.

A connection is a lease: nothing that must survive a call is kept in it. `Link` opens it at the
first call, in the thread that uses it, and closes it after any error with `reconnect`; the next
call opens a new one. This is how a worker survives a fail-over. Example: the primary behind a
virtual address becomes a replica. It keeps the old TCP connection open and rejects every write, so
a client that kept the connection would be rejected for ever; a new connection reaches the new
primary.

Every user of Redis or PostgreSQL in a long-lived worker goes through a link. No other code catches
store errors in order to wait or to reconnect.
"""

import logging
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, overload

import trio

from rsky_pipeline.runtime.backoff import Backoff
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.errors import StoreError, UnavailableError, WorkerError
from rsky_pipeline.runtime.logging import ThrottledLog
from rsky_pipeline.runtime.threads import in_thread

_log = logging.getLogger(__name__)
LEAST_PAUSE_SECONDS = 0.05  # full jitter may draw almost 0
BASE_SECONDS, CAP_SECONDS = 0.2, 10.0  # bounds of the back-off
FORGOTTEN_SECONDS = 60.0  # after which the failure of a link that is not used any more is over


class Closable(Protocol):
    """A connection of a blocking client."""

    def close(self) -> None:
        """Close it in any state; never raises."""

    @property
    def has_ended(self) -> bool:
        """Whether the server has closed it while no call was under way, as far as is known."""


Connection = TypeVar("Connection", bound=Closable)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class StoreTrouble:
    """A link whose calls fail because of the store, for so long."""

    purpose: str
    error: StoreError
    seconds: float


class Link(Generic[Connection]):
    """One connection and its thread; concurrent calls run one after another.

    An action is a blocking function of the connection. It runs in a thread, and threads cannot be
    cancelled: the server must bound its duration (`XREADGROUP BLOCK`, `statement_timeout`), and a
    cancelled call returns only when its action has ended. Each call is a thread hop, so an action
    should process a batch. Actions passed to `retry` must be idempotent: after a lost reply the
    first execution may have taken effect.

    `StoreError.reconnect` decides whether an error closes the connection, `StoreError.retryable`
    whether `retry` goes on. Any other exception closes the connection too: part of a reply may be
    unread, and the next call would take it for its own.
    """

    def __init__(
        self,
        open_connection: Callable[[], Connection],
        *,
        purpose: str,
        failed: Callable[[StoreError], object] | None = None,
        boundary: Boundary | None = None,
    ) -> None:
        """`purpose` names the connection in the log. `failed` is called in the event loop for
        every store error, for example to count it and to keep an `Activity` from stalling.
        `boundary` counts what `attempt` catches beside."""
        self.purpose = purpose
        self._open_connection = open_connection
        self._failed = failed
        self._boundary = boundary or Boundary()
        self._connection: Connection | None = None
        self._limiter = trio.CapacityLimiter(1)
        self._throttled = ThrottledLog(_log)
        self._error: StoreError | None = None  # of the last call, if the store was the cause
        self._failures, self._since, self._until = 0, 0.0, 0.0  # in a row; from when to when
        self._calls = 0  # in progress
        _of_this_run(self)

    @property
    def in_trouble(self) -> bool:
        """Whether the last call failed because of the store, not because of its work."""
        return self._error is not None

    def trouble(self, now: float) -> StoreTrouble | None:
        """Return the trouble of the store at a monotonic time, None if there is none.

        One failure is none yet: a server that closes an idle connection causes it. It is trouble
        if the next call fails too, or does not return.
        """
        error = self._error
        if error is None or (self._failures < 2 and not self._calls):
            return None
        if not self._calls and now - self._until > FORGOTTEN_SECONDS:
            return None
        return StoreTrouble(self.purpose, error, now - self._since)

    async def call(self, action: Callable[[Connection], Result]) -> Result:
        """Run an action once. Raises its errors, and those of opening the connection.

        Store errors are counted and logged here; callers need not repeat that.
        """
        self._calls += 1
        try:
            result = await in_thread(self.act, action, limiter=self._limiter)
        except StoreError as error:
            self._note(error if error.retryable else None)
            if self._failed is not None:
                self._failed(error)
            self._throttled.warning(
                "store failed", key=type(error).__name__, purpose=self.purpose, error=error
            )
            raise
        finally:
            self._calls -= 1
        self._note(None)
        return result

    def _note(self, error: StoreError | None) -> None:
        now = time.monotonic()
        if error is None:
            self._failures = 0
        else:
            self._since = self._since if self._failures else now
            self._failures, self._until = self._failures + 1, now
        self._error = error

    async def attempt(self, action: Callable[[Connection], Result]) -> Result | None:
        """Run an action once; returns None after a retryable error.

        For periodic work, such as measuring the streams every few seconds. It must not end the
        worker because of an unexpected reply, of which the store would give the same after each
        restart: such an exception is logged with its traceback, and returns None as well.
        """
        try:
            return await self.call(action)
        except StoreError as error:
            if not error.retryable:
                raise
        except WorkerError:
            raise
        except Exception as error:  # noqa: BLE001 - see runtime.boundary
            self._boundary.caught(error, "periodic work", purpose=self.purpose)
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
        """Run an action until it succeeds, with back-off; raises errors that are not retryable.

        The action runs at least once. Returns None if `until` is set before a further try.
        """
        backoff = Backoff(BASE_SECONDS, CAP_SECONDS)
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

    def insist(self, action: Callable[[Connection], Result], *, seconds: float) -> Result:
        """Run an action in this thread, and again while the store is unavailable.

        For commands, which have no event loop. Raises any other error at once, and the last one
        after `seconds`: an operator is waiting, and can start the command again.
        """
        backoff, deadline = Backoff(BASE_SECONDS, CAP_SECONDS), time.monotonic() + seconds
        while True:
            try:
                return self.act(action)
            except StoreError as error:
                now = time.monotonic()
                if not isinstance(error, UnavailableError) or now >= deadline:
                    raise
            backoff, pause = backoff.failed(now)
            time.sleep(max(pause, LEAST_PAUSE_SECONDS))

    def close(self) -> None:
        """Close the connection, if open; a later call opens another.

        Must not be called while an action runs.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def act(self, action: Callable[[Connection], Result]) -> Result:
        """Run an action once, in this thread: `call` for commands, which have no event loop."""
        try:
            if self._connection is not None and self._connection.has_ended:
                # An idle timeout of the server or a proxy: no failure, and the next one in vain
                # would meet it again where calls are rarer than the timeout.
                self.close()
            if self._connection is None:
                self._connection = self._open_connection()
            return action(self._connection)
        except BaseException as error:
            if not isinstance(error, StoreError) or error.reconnect:
                self.close()
            raise


# Of each run of an event loop its own, as workers in one process (tests) are not each other's.
_links: "trio.lowlevel.RunVar[weakref.WeakSet[Link[Any]]]" = trio.lowlevel.RunVar("links")


def _of_this_run(link: Link[Any]) -> None:
    """Have `store_troubles` look at a link, if it is made in an event loop."""
    try:
        _links.get().add(link)
    except LookupError:
        _links.set(weakref.WeakSet([link]))
    except RuntimeError:
        return  # a command's, which sees each failure itself


def store_troubles() -> list[StoreTrouble]:
    """Return the present troubles of all links that were made in this event loop."""
    now = time.monotonic()
    links = _links.get(weakref.WeakSet())
    return [trouble for each in list(links) if (trouble := each.trouble(now)) is not None]
