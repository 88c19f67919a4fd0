"""How long a server may take for one answer, by our own clock.

`statement_timeout` is the server's clock. It ends nothing where the server's process hangs, or
where packets vanish behind a proxy that keeps our side open. One watcher thread shuts down the
socket of a connection that has waited for longer; the waiting call then fails as if the connection
were lost.
"""

import contextlib
import math
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

PATIENCE_SECONDS = 30.0  # beyond the time that the server itself allows
_WATCH_SECONDS = 5.0

Result = TypeVar("Result")


class PatientConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection whose every wait for the server is timed."""

    _since = math.inf  # since when an answer is waited for
    _seconds = math.inf
    _socket: socket.socket | None = None

    def limit(self, statement_timeout_ms: int) -> None:
        """Set how long a statement may take; 0 is for ever."""
        if statement_timeout_ms:
            self._seconds = statement_timeout_ms / 1_000 + PATIENCE_SECONDS
            # A duplicate: the number of the original may be another socket's when it is used.
            self._socket = socket.socket(fileno=os.dup(self.fileno()))
            _watcher.watch(self)

    def wait(self, gen: PQGen[Result], *args: Any, **options: Any) -> Result:
        """Wait for the server; every call of the library that needs an answer comes here."""
        with self.timed():
            return super().wait(gen, *args, **options)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Limit the time of a block that waits for the server past `wait`."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = math.inf

    def look(self, now: float) -> None:
        """Shut the socket down if its time is over."""
        if now - self._since > self._seconds and self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it, and the duplicate of its socket."""
        if self._socket is not None:
            self._socket.close()
        super().close()


class _PatienceWatcher:
    """One thread for all connections of the process, started with the first one."""

    def __init__(self) -> None:
        self._watched: weakref.WeakSet[PatientConnection] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._started = False

    def watch(self, connection: PatientConnection) -> None:
        with self._lock:
            self._watched.add(connection)
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="patience", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(_WATCH_SECONDS)
            with self._lock:
                watched = list(self._watched)
            for each in watched:
                each.look(time.monotonic())
            del watched[:]


_watcher = _PatienceWatcher()
