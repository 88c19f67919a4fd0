"""A TCP address that leads to another one, until it is closed or falls silent."""

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

_CHUNK = 65_536


class Forward:
    """Listens on a port of the loopback address, the same one after each `open`."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._target = (address.hostname or "", address.port or 0)
        self._port = 0
        self._listener: socket.socket | None = None
        self._sockets: set[socket.socket] = set()
        self._passing = threading.Event()
        self._passing.set()
        self.open()
        self.url = f"{address.scheme}://127.0.0.1:{self._port}"

    def open(self) -> None:
        """Accept connections."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Refuse connections, and end those that are open."""
        for each in (self._listener, *list(self._sockets)):
            if each is not None:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
        self._listener = None

    def stall(self) -> None:
        """Pass nothing on, in either direction; connections stay open."""
        self._passing.clear()

    def go_on(self) -> None:
        """Pass on again, first what has come meanwhile."""
        self._passing.set()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError, ValueError),
            client,
            socket.create_connection(self._target, 30) as server,
        ):
            server.settimeout(None)
            pair = {client: server, server: client}
            self._sockets |= pair.keys()
            try:
                self._pass(pair)
            finally:
                self._sockets -= pair.keys()

    def _pass(self, pair: dict[socket.socket, socket.socket]) -> None:
        with selectors.DefaultSelector() as selector:
            for each in pair:
                selector.register(each, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    self._passing.wait()
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    data = source.recv(_CHUNK)
                    if not data:
                        return
                    pair[source].sendall(data)


@contextlib.contextmanager
def forwarding(url: str) -> Iterator[Forward]:
    """Yield a way to a server that can be cut."""
    forward = Forward(url)
    try:
        yield forward
    finally:
        forward.go_on()
        forward.close()
