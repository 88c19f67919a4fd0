"""What the tests of streams share."""

import contextlib
import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.consumer import Delivery
from tests.consumers import GroupReader


def entries(count: int, stream: str = "s", first: int = 0) -> list[Entry]:
    """Return entries whose payloads are numbers."""
    return [Entry(stream, b"event", b"%d" % number) for number in range(first, first + count)]


def reader(store: Store, group: str = "g", consumer: str = "c") -> GroupReader:
    """Return a consumer on the stream `s`, whose group exists."""
    result = GroupReader(store, "s", group, consumer)
    result.ensure()
    return result


def own_pending(own: GroupReader, count: int = 10, start: str = "-") -> list[Delivery]:
    """Let what is pending with a consumer be delivered to it again; return it."""
    return own.claim(own.pending(start, count, own=True), 0).deliveries


def pending_count(own: GroupReader) -> int:
    """Return how many entries are pending with a consumer."""
    return len(own.pending("-", 10_000, own=True))


def values(deliveries: Iterable[Delivery]) -> list[int]:
    """Return the payloads of those that have a body."""
    return [int(item.fields[b"event"]) for item in deliveries if item.fields is not None]


def ids(deliveries: Iterable[Delivery]) -> list[str]:
    """Return the ids of deliveries."""
    return [item.id for item in deliveries]


def stored(store: Store, stream: str = "s") -> dict[int, str]:
    """Return what a stream holds, by payload."""
    return {
        int(body[1]): entry_id.decode() for entry_id, body in store.call("XRANGE", stream, "-", "+")
    }


class UnreliableProxy:
    """Hands on bytes between clients on TCP and a server on a unix socket.

    While `answering` is clear, replies are kept back; they are dropped if their connection closes
    meanwhile, and arrive late otherwise.
    """

    def __init__(self, url: str) -> None:
        self._target = Path(url.removeprefix("unix://"))
        self.answering = threading.Event()
        self.answering.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def switch(self, url: str) -> None:
        """Lead new connections to another server, as an address does after a fail-over."""
        self._target = Path(url.removeprefix("unix://"))

    def __enter__(self) -> "UnreliableProxy":
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.answering.set()
        for item in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):  # the other side closed first
                item.shutdown(socket.SHUT_RDWR)
            item.close()
        for thread in self._threads:
            thread.join(5)

    def _run(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._target))
                self._sockets += (client, server)
                self._run(self._pump, client, server, False)
                self._run(self._pump, server, client, True)

    def _pump(self, source: socket.socket, sink: socket.socket, is_reply: bool) -> None:
        with contextlib.suppress(OSError):  # either side was closed
            while data := source.recv(65_536):
                if is_reply:
                    self.answering.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def memory_full(store: Store) -> Iterator[None]:
    """Let the server be out of memory."""
    store.call("CONFIG", "SET", "maxmemory", "1")
    try:
        yield
    finally:
        store.call("CONFIG", "SET", "maxmemory", "0")
